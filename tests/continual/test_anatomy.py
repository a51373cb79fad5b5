"""The parts of any transformers model are found by structure, or the error says what was found."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from continual import hooks
from continual.anatomy import Anatomy, find_anatomy
from continual.errors import ModelError
from continual.passes.edit_site import settled
from tests.tiny_models import BLOCKS, FFN_WIDTH, FFNLESS, FOUND, WIDTH, tiny_inputs, tiny_model

EXPECTED = {
    "gpt2": ("transformer.h", ("mlp.c_fc",), "mlp.c_proj", None, "transformer.ln_f", "lm_head"),
    "gptj": ("transformer.h", ("mlp.fc_in",), "mlp.fc_out", None, "transformer.ln_f", "lm_head"),
    "gpt-neox": (
        "gpt_neox.layers",
        ("mlp.dense_h_to_4h",),
        "mlp.dense_4h_to_h",
        None,
        "gpt_neox.final_layer_norm",
        "lm_head",
    ),
    "opt": (
        "model.decoder.layers",
        ("fc1",),
        "fc2",
        None,
        "model.decoder.final_layer_norm",
        "lm_head",
    ),
    "opt-post-norm": (
        "model.decoder.layers",
        ("fc1",),
        "fc2",
        "final_layer_norm",
        None,
        "lm_head",
    ),
    "qwen3": (
        "model.layers",
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
        None,
        "model.norm",
        "lm_head",
    ),
    "phi3": (
        "model.layers",
        ("mlp.gate_up_proj",),
        "mlp.down_proj",
        None,
        "model.norm",
        "lm_head",
    ),
    "bert": (
        "bert.encoder.layer",
        ("intermediate.dense",),
        "output.dense",
        "output.LayerNorm",
        None,
        "cls.predictions.decoder",
    ),
    "roberta-labels": (
        "roberta.encoder.layer",
        ("intermediate.dense",),
        "output.dense",
        "output.LayerNorm",
        None,
        "classifier.out_proj",
    ),
    "bart": (
        "model.decoder.layers",
        ("fc1",),
        "fc2",
        "final_layer_norm",
        None,
        "lm_head",
    ),
    "t5-gated": (
        "decoder.block",
        ("layer.2.DenseReluDense.wi_0", "layer.2.DenseReluDense.wi_1"),
        "layer.2.DenseReluDense.wo",
        None,
        "decoder.final_layer_norm",
        "lm_head",
    ),
    "gemma2": (
        "model.layers",
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
        None,
        "model.norm",
        "lm_head",
    ),
}


def summary(anatomy: Anatomy) -> tuple[Any, ...]:
    return (
        anatomy.blocks,
        anatomy.up,
        anatomy.down,
        anatomy.norm_after,
        anatomy.final_norm,
        anatomy.head,
    )


@pytest.mark.parametrize("name", FOUND)
def test_sizes_are_found(name: str) -> None:
    anatomy = find_anatomy(tiny_model(name))
    assert (anatomy.block_count, anatomy.width, anatomy.ffn_width) == (BLOCKS, WIDTH, FFN_WIDTH)


@pytest.mark.parametrize("name", EXPECTED)
def test_paths_are_found(name: str) -> None:
    assert summary(find_anatomy(tiny_model(name))) == EXPECTED[name]


@pytest.mark.parametrize("name", FOUND)
def test_down_weight_maps_the_key_activation_to_the_ffn_output(name: str) -> None:
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    for index in range(anatomy.block_count):
        down = anatomy.down_module(model, index)
        with hooks.captured(down) as calls:
            model(**tiny_inputs(model))
        weight = anatomy.down_weight(model, index)
        assert weight.shape == (FFN_WIDTH, WIDTH)
        bias = 0 if getattr(down, "bias", None) is None else down.bias
        torch.testing.assert_close(calls[0].input @ weight + bias, calls[0].output)


def test_down_weight_is_a_view_of_the_model() -> None:
    for name in ("gpt2", "llama"):
        model = tiny_model(name)
        anatomy = find_anatomy(model)
        anatomy.down_weight(model, 1)[3, 5] = 42.0
        down = anatomy.down_module(model, 1)
        assert down.weight[(3, 5) if anatomy.transposed else (5, 3)] == 42.0


@pytest.mark.parametrize("name", FOUND)
def test_every_up_module_is_given_the_query(name: str) -> None:
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    seen = []
    ups = dict(enumerate(anatomy.up_modules(model, 1)))
    with hooks.watched(ups, lambda _, call: seen.append(call.input)):
        model(**tiny_inputs(model))
    assert len(seen) == len(anatomy.up)
    assert all(torch.equal(query, seen[0]) for query in seen)


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5-gated"])
def test_what_is_found_can_be_given_as_overrides(name: str) -> None:
    model = tiny_model(name)
    found = find_anatomy(model)
    overrides = {
        "blocks": found.blocks,
        "up": ", ".join(found.up),
        "down": found.down,
        "norm_after": found.norm_after or "none",
        "final_norm": found.final_norm or "none",
        "head": found.head,
    }
    assert find_anatomy(model, overrides) == found


def test_an_override_wins_over_what_is_found() -> None:
    model = tiny_model("bart")
    assert find_anatomy(model, {"norm_after": "none"}).norm_after is None
    encoder = find_anatomy(model, {"blocks": "model.encoder.layers"})
    assert (encoder.block_count, encoder.ffn_width) == (4, 24)
    gate = find_anatomy(tiny_model("llama"), {"up": "mlp.up_proj"})
    assert gate.up == ("mlp.up_proj",)


def test_overridden_norm_and_head_make_the_tail() -> None:
    model = tiny_model("opt-projected")
    anatomy = find_anatomy(model, {"head": "model.decoder.project_out"})
    assert anatomy.tail == ("model.decoder.layers.2.final_layer_norm", "model.decoder.project_out")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"layers": "transformer.h"}, "anatomy.layers is not a setting; there are blocks, up"),
        ({"blocks": "model.layers"}, "GPT2LMHeadModel has no 'model.layers'. It has transformer"),
        ({"blocks": "transformer.ln_f"}, r"not a list of equal blocks.*transformer.h \(3 ×"),
        ({"down": "mlp.down_proj"}, "GPT2Block has no 'mlp.down_proj'. It has ln_1, attn"),
        ({"down": "mlp.c_fc"}, r"0 that fit.*mlp.c_fc \(16 → 40\), mlp.c_proj \(40 → 16\)"),
        ({"up": "mlp.c_fc, nowhere"}, "has no 'nowhere'"),
        ({"final_norm": "norm"}, "anatomy.final_norm: GPT2LMHeadModel has no 'norm'"),
        ({"norm_after": "norm"}, "anatomy.norm_after: GPT2Block has no 'norm'"),
        ({"head": "classifier"}, "anatomy.head: GPT2LMHeadModel has no 'classifier'"),
    ],
)
def test_a_wrong_override_is_refused_with_what_there_is(
    overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        find_anatomy(tiny_model("gpt2"), overrides)


@pytest.mark.parametrize("name", FFNLESS)
def test_a_model_without_one_ffn_a_block_is_its_blocks(name: str) -> None:
    model = tiny_model(name)
    anatomy = settled(model, find_anatomy(model))
    assert (anatomy.block_count, anatomy.width) == (BLOCKS, WIDTH)
    assert not anatomy.is_at_ffn and not anatomy.no_rows
    assert anatomy.blocks in ("model.layers", "backbone.layers")


def test_editors_of_a_matrix_are_told_why_a_mixture_has_none() -> None:
    model = tiny_model("mixtral")
    anatomy = find_anatomy(model)
    reason = (
        r"no FFN in each block.*Mixtures of experts have.*mlp\.experts.*tpatcher, serac and ike"
    )
    with pytest.raises(ModelError, match=reason):
        anatomy.down_path(0)
    with pytest.raises(ModelError, match=reason):
        anatomy.down_module(model, 0)
    with pytest.raises(ModelError, match=reason):
        anatomy.query_module(model, 0)


def test_two_ffns_in_a_block_are_named_with_their_matrices() -> None:
    model = tiny_model("gptj")
    for block in model.transformer.h:
        block.mlp.second = nn.Sequential(nn.Linear(WIDTH, FFN_WIDTH), nn.Linear(FFN_WIDTH, WIDTH))
        block.mlp.forward = _both(block.mlp)
    found = find_anatomy(model)
    assert re.search(r"has 2 that fit.*second\.1 \(40 → 16\).*up = .*down = ", found.no_ffn_site)
    chosen = find_anatomy(model, {"up": "mlp.fc_in", "down": "mlp.fc_out"})
    assert (chosen.up, chosen.down) == (("mlp.fc_in",), "mlp.fc_out")


def _both(mlp: Any) -> Any:
    return lambda hidden: mlp.fc_out(mlp.act(mlp.fc_in(hidden))) + mlp.second(hidden)


def test_blocks_of_different_widths_have_no_ffn_that_they_share() -> None:
    model = tiny_model("opt")
    model.model.decoder.layers[1].fc1 = nn.Linear(WIDTH, 24)
    model.model.decoder.layers[1].fc2 = nn.Linear(24, WIDTH)
    reason = find_anatomy(model).no_ffn_site
    assert re.search(r"layers\.1 has not the FFN.*fc1 \(16 → 24\)", reason)


def test_blocks_that_share_one_module_have_no_place_of_their_own() -> None:
    model = tiny_model("opt")
    layers = model.model.decoder.layers
    layers[2] = layers[1]
    found = find_anatomy(model)
    assert found.is_one and "run once" in found.no_ffn_site


def test_a_model_without_blocks_is_refused() -> None:
    model = tiny_model("opt")
    model.model.decoder.layers = nn.ModuleList()
    with pytest.raises(ModelError, match=r"No list of blocks.*no list of equal modules at all"):
        find_anatomy(model)


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        find_anatomy(tiny_model("gpt2").train())


@pytest.mark.parametrize("name", FOUND)
def test_nothing_is_left_on_the_model(name: str) -> None:
    model = tiny_model(name)
    find_anatomy(model)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("width", [WIDTH, 8])
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_an_ffn_no_wider_than_the_hidden_state_is_found(name: str, width: int) -> None:
    model = tiny_model(name, ffn_width=width)
    anatomy = find_anatomy(model)
    usual = find_anatomy(tiny_model(name))
    assert (anatomy.up, anatomy.down, anatomy.ffn_width) == (usual.up, usual.down, width)


def test_blocks_of_several_kinds_are_named_with_their_kinds() -> None:
    model = tiny_model("opt")
    layers = model.model.decoder.layers
    layers[1] = type("OtherLayer", (type(layers[1]),), {"forward": type(layers[1]).forward})(
        model.config, 1
    ).eval()
    found = find_anatomy(model)
    assert (found.blocks, found.is_at_ffn) == ("model.decoder.layers", False)
    message = r"several kinds: model.decoder.layers \(3 of OPTDecoderLayer, OtherLayer\)"
    assert re.search(message, found.no_ffn_site)
