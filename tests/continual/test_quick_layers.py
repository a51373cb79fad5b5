"""Layers that stand in for a model's own: what they give, and that nothing of them stays."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers.activations import NewGELUActivation

from continual.anatomy import find_anatomy
from continual.locate_then_edit import layers
from continual.locate_then_edit.layers import QuickLayers
from tests import tiny_language as language


@pytest.fixture(autouse=True)
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU that has them, whatever runs the tests."""
    monkeypatch.setattr(layers, "_has_units", lambda: True)


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return language.decoder(request.param, width=32).eval().requires_grad_(False)


IDS = torch.tensor([[5, 9, 3, 7, 2, 8]])


def logits_and_gradient(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    given = model.get_input_embeddings()(IDS).requires_grad_()
    logits = model(inputs_embeds=given).logits
    (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[0, :, 4].sum(), given)
    return logits.detach(), gradient


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


def test_logits_and_gradients_are_off_by_no_more_than_rounding(model):
    logits, gradient = logits_and_gradient(model)
    with QuickLayers(model, find_anatomy(model), 0).on():
        quick_logits, quick_gradient = logits_and_gradient(model)
    assert 0.0 < error(quick_logits, logits) < 0.02
    assert 0.0 < error(quick_gradient, gradient) < 0.02


def test_nothing_below_the_block_is_rounded(model):
    anatomy = find_anatomy(model)
    hidden = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    with QuickLayers(model, anatomy, 0).on():
        below = [anatomy.up_modules(model, i)[0](hidden) for i in (0, 1)]
    exact = [anatomy.up_modules(model, i)[0](hidden) for i in (0, 1)]
    assert torch.equal(below[0], exact[0])
    assert not torch.equal(below[1], exact[1])


@pytest.mark.parametrize("count", [1, 16, 17, 300, 512, 513, 4097])
def test_rows_of_any_number_are_multiplied_and_no_more(count):
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, 24, generator=generator)
    matrix = torch.randn(24, 40, generator=generator).bfloat16()
    bias = torch.randn(40, generator=generator).bfloat16()
    expected = rows.bfloat16().double() @ matrix.double()
    for given, wanted in ((None, expected), (bias, expected + bias.double())):
        for dtype in (torch.float32, torch.bfloat16):
            found = layers._multiplied(rows[None], matrix, given, dtype)
            assert found.shape == (1, count, 40) and found.dtype == dtype
            assert error(found[0].double(), wanted) < 2**-8


def test_a_part_has_zeros_behind_it():
    rounded = layers._rounded(torch.ones(3, 4), torch.bfloat16)
    assert rounded.shape == (16, 4)
    assert rounded[:3].eq(1).all() and rounded[3:].eq(0).all()


class Mixing(torch.nn.Module):
    """An activation, and a product with a float32 matrix behind it."""

    def __init__(self, activation: torch.nn.Module, width: int) -> None:
        super().__init__()
        self.activation = activation
        mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(0)) / width**0.5
        self.mixing = torch.nn.Parameter(mixing, requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.activation(hidden) @ self.mixing


def test_an_ffn_that_does_more_than_activate_runs_in_float32_between_its_matrices(model):
    anatomy = find_anatomy(model)
    mlp = anatomy.block(model, 1).mlp
    activation = "act" if hasattr(mlp, "act") else "act_fn"
    setattr(mlp, activation, Mixing(getattr(mlp, activation), anatomy.ffn_width))
    logits, gradient = logits_and_gradient(model)
    quick = QuickLayers(model, anatomy, 0)
    with quick.on():
        assert anatomy.up_modules(model, 1)[0](torch.ones(2, 32)).dtype == torch.float32
        quick_logits, quick_gradient = logits_and_gradient(model)
    assert 0.0 < error(quick_logits, logits) < 0.02
    assert 0.0 < error(quick_gradient, gradient) < 0.03


def test_the_heads_logits_are_not_rounded_themselves(model):
    anatomy = find_anatomy(model)
    head = anatomy.tail_modules(model)[-1]
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wanted = torch.randn(3, len(language.words()), generator=torch.Generator().manual_seed(1))
    exact = head(hidden)
    (expected,) = torch.autograd.grad((exact * wanted).sum(), hidden)
    with QuickLayers(model, anatomy, 0).on():
        found = head(hidden)
        (gradient,) = torch.autograd.grad((found * wanted).sum(), hidden)
    assert error(found, exact) < 0.02
    assert not torch.equal(found, found.bfloat16().float())
    assert 0.0 < error(gradient, expected) < 0.02


def test_the_model_has_its_own_layers_again_even_when_an_exception_passes(model):
    before = model(input_ids=IDS).logits
    with pytest.raises(KeyError), QuickLayers(model, find_anatomy(model), 0).on():
        raise KeyError
    assert torch.equal(model(input_ids=IDS).logits, before)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_the_weights_are_those_of_when_it_was_made(model):
    quick = QuickLayers(model, find_anatomy(model), 0)
    with quick.on():
        before = model(input_ids=IDS).logits
    for module in find_anatomy(model).block(model, 1).modules():
        if layers._is_linear(module):
            module.weight.data.mul_(2.0)
    with quick.on():
        assert torch.equal(model(input_ids=IDS).logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_weights_than_float32_are_left_alone(dtype):
    model = language.decoder("llama", width=32).eval().to(dtype)
    before = model(input_ids=IDS).logits
    with QuickLayers(model, find_anatomy(model), 0).on():
        assert torch.equal(model(input_ids=IDS).logits, before)


def test_only_gelus_tanh_form_is_taken_for_it():
    assert layers._is_tanh_gelu(NewGELUActivation())
    assert not layers._is_tanh_gelu(torch.nn.GELU())
    assert not layers._is_tanh_gelu(torch.nn.ReLU())


MANY_SHAPES = """
import torch
from pathlib import Path
from continual.anatomy import find_anatomy
from continual.locate_then_edit.layers import QuickLayers
from tests import tiny_language

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

torch.set_num_threads(1)
model = tiny_language.decoder(width=128).eval().requires_grad_(False)
with QuickLayers(model, find_anatomy(model), 0).on(), torch.no_grad():
    for sequences in range(1, 129):
        model(torch.ones(sequences, 5, dtype=torch.long))
        if sequences == 64:
            before = resident()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_products_of_ever_new_shapes_do_not_fill_the_memory():
    """In a process of its own: how many are kept is read at the first one."""
    command = [sys.executable, "-c", MANY_SHAPES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 128  # MiB, for another 64 shapes: 270 where all are kept
