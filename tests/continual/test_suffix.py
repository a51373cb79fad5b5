"""The ends of sequences, run behind kept beginnings, are what whole passes give."""

from __future__ import annotations

import pytest
import torch

from continual.anatomy import find_anatomy
from continual.hooks import captured
from continual.suffix import EndPass, Ends, keeps_prefixes
from tests.tiny_models import tiny_model

KEPT = ["gpt2", "gpt-neox", "gptj", "llama", "opt"]
IDS = (
    (5, 9, 14, 22, 31, 40, 12),
    (7, 8, 9),
    (50, 41, 33, 21, 17),
)
STARTS = (4, 0, 2)


def whole(model, anatomy, ids, moved=None):
    """The last block's sums [T, d] in a full pass, with a vector added behind a block."""
    block = anatomy.block(model, anatomy.last)
    handle = None
    if moved is not None:
        index, position, vector = moved

        def add(_, __, output):
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            hidden = hidden.clone()
            hidden[0, position] += vector
            return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

        handle = anatomy.block(model, index).register_forward_hook(add)
    with torch.no_grad(), captured(block) as calls:
        model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    if handle is not None:
        handle.remove()
    return calls[0].hidden[0]


@pytest.mark.parametrize("name", KEPT)
def test_a_known_decoder_keeps_prefixes(name):
    model = tiny_model(name)
    assert keeps_prefixes(model, find_anatomy(model))


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("block", [0, 1])
def test_what_is_added_at_the_start_of_an_end_moves_the_end_as_in_a_whole_pass(name, block):
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    found = EndPass(model, anatomy, Ends(IDS, STARTS), block, pad=0)
    vectors = torch.randn(len(IDS), anatomy.width, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 0.0, 3.0):  # again and again from the same recording
        sums = found.sums.clone()
        sums[:, 0] += scale * vectors
        with torch.no_grad():
            last = found.last_sums(sums)
        for i, (ids, start) in enumerate(zip(IDS, STARTS, strict=True)):
            expected = whole(model, anatomy, ids, (block, start, scale * vectors[i]))[start:]
            assert torch.allclose(last[i, : len(expected)], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradients_are_those_of_a_pass_over_the_ends_each_time(name):
    model = tiny_model(name)
    model.requires_grad_(False)
    anatomy = find_anatomy(model)
    found = EndPass(model, anatomy, Ends(IDS, STARTS), 0, pad=0)
    gradients = []
    for _ in range(3):
        sums = found.sums.clone().requires_grad_()
        found.last_sums(sums)[:, :2].square().sum().backward()
        gradients.append(sums.grad)
    assert gradients[0].abs().max() > 0
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.parametrize("name", KEPT)
def test_some_of_the_sequences_come_out_as_all_of_them_do(name):
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    every = EndPass(model, anatomy, Ends(IDS, STARTS), 0, pad=0)
    some = every.select(torch.tensor([2, 0]))
    with torch.no_grad():
        whole_batch = every.last_sums(every.sums)
        chosen = some.last_sums(some.sums)
        again = every.last_sums(every.sums)
    assert torch.allclose(chosen, whole_batch[[2, 0]], atol=1e-5)
    assert torch.equal(again, whole_batch)


@pytest.mark.parametrize("name", [*KEPT, "opt-post-norm", "phi3"])
@pytest.mark.parametrize("block", [0, 1])
def test_answers_are_rows_of_the_last_sums_and_have_their_gradient(name, block):
    model = tiny_model(name)
    model.requires_grad_(False)
    found = EndPass(model, find_anatomy(model), Ends(IDS, STARTS), block, pad=0)
    rows = torch.tensor([0, 3, 4, len(found.sums) * found.sums.shape[1] - 1])
    seen = []
    for way in (
        lambda sums: found.answers(sums, rows),
        lambda sums: found.last_sums(sums).flatten(0, 1)[rows],
    ):
        sums = found.sums.clone().requires_grad_()
        states = way(sums)
        states.square().sum().backward()
        seen.append((states.detach(), sums.grad))
    torch.testing.assert_close(*[states for states, _ in seen])
    torch.testing.assert_close(*[gradient for _, gradient in seen])


def test_ends_that_are_whole_sequences_need_no_beginnings():
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)
    found = EndPass(model, anatomy, Ends(IDS, (0, 0, 0)), 1, pad=0)
    with torch.no_grad():
        last = found.last_sums(found.sums)
    for i, ids in enumerate(IDS):
        assert torch.allclose(last[i, : len(ids)], whole(model, anatomy, ids), atol=1e-4)


def test_a_model_that_reads_its_cache_otherwise_is_noticed(monkeypatch):
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)
    rewind = EndPass._rewind

    def forget(self):
        rewind(self)
        for layer in self._layers():
            layer.keys = layer.keys + 1.0

    monkeypatch.setattr(EndPass, "_rewind", forget)
    assert not keeps_prefixes(model, anatomy)
