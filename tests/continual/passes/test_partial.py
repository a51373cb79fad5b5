"""A model run in parts equals the model run whole, bit for bit; single rows up to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual import hooks
from continual.anatomy import find_anatomy
from continual.errors import ModelError
from continual.passes.edit_site import find_tail, settled
from continual.passes.partial import capture_rows, finish, logits_of, record, run
from tests.tiny_models import (
    BLOCK_SITED,
    FOUND,
    NORMED_FFN,
    TAILED,
    WIDTH,
    tiny_inputs,
    tiny_model,
)

BATCHES = pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def is_clean(model: Any) -> bool:
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return not hooked and not any("forward" in module.__dict__ for module in model.modules())


@BATCHES
@pytest.mark.parametrize("name", FOUND)
def test_every_split_gives_the_logits_of_the_whole(name: str, padded: bool) -> None:
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    inputs = tiny_inputs(model, padded=padded)
    whole = logits_of(model, inputs)
    count = anatomy.block_count
    recording = record(model, anatomy, inputs, range(count + 1))
    for first in range(count + 1):
        for last in range(first, count + 1):
            hidden = run(model, anatomy, recording, recording.hidden[first], first, last)
            assert torch.equal(hidden, recording.hidden[last])
            hidden = run(model, anatomy, recording, hidden, last, count)
            assert torch.equal(finish(model, anatomy, recording, hidden), whole)
    assert is_clean(model)


@pytest.mark.parametrize("name", FOUND)
def test_another_hidden_state_goes_its_way_as_in_the_whole_model(name: str) -> None:
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    inputs = tiny_inputs(model, padded=True)
    recording = record(model, anatomy, inputs, [1])
    other = recording.hidden[1] * 1.5 + 0.25
    with hooks.replaced(anatomy.block(model, 0), other):
        whole = logits_of(model, inputs)
    hidden = run(model, anatomy, recording, other, 1, anatomy.block_count)
    assert torch.equal(finish(model, anatomy, recording, hidden), whole)
    assert not torch.equal(whole, logits_of(model, inputs))


@pytest.mark.parametrize("name", FOUND)
def test_a_part_carries_gradients_back_to_the_hidden_state(name: str) -> None:
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    recording = record(model, anatomy, tiny_inputs(model), [1])
    hidden = recording.hidden[1].clone().requires_grad_()
    leaving = run(model, anatomy, recording, hidden, 1, anatomy.block_count)
    finish(model, anatomy, recording, leaving)[..., 3].sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    assert hidden.grad.any()


def test_only_the_states_asked_for_are_kept() -> None:
    model = tiny_model("gpt2")
    recording = record(model, find_anatomy(model), tiny_inputs(model), [2])
    assert list(recording.hidden) == [2]


@BATCHES
@pytest.mark.parametrize("name", TAILED)
def test_rows_give_the_logits_of_the_model(name: str, padded: bool) -> None:
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    tail = find_tail(model, anatomy)
    inputs = tiny_inputs(model, padded=padded)
    rows = capture_rows(model, anatomy, inputs, anatomy.last)
    assert torch.equal(rows.logits, logits_of(model, inputs))
    torch.testing.assert_close(_tail_logits(tail, rows.hidden), rows.logits, **CLOSE)


@BATCHES
@pytest.mark.parametrize("name", TAILED)
def test_adding_to_the_ffn_output_adds_to_the_rows(name: str, padded: bool) -> None:
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    tail = find_tail(model, anatomy)
    inputs = tiny_inputs(model, padded=padded)
    rows = capture_rows(model, anatomy, inputs, anatomy.last)
    patch = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2)) * 2
    with hooks.added(anatomy.down_module(model, anatomy.last), patch):
        patched = logits_of(model, inputs)
    assert not torch.allclose(patched, rows.logits, rtol=0.05)
    torch.testing.assert_close(_tail_logits(tail, rows.hidden + patch), patched, **CLOSE)


@pytest.mark.parametrize("name", FOUND)
def test_a_silent_patch_changes_no_bit(name: str) -> None:
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    inputs = tiny_inputs(model, padded=True)
    with hooks.added(anatomy.down_module(model, anatomy.last), torch.zeros(WIDTH)):
        silent = logits_of(model, inputs)
    assert torch.equal(silent, logits_of(model, inputs))


@pytest.mark.parametrize("name", TAILED)
def test_rows_are_independent_and_differentiable(name: str) -> None:
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    tail = find_tail(model, anatomy)
    hidden = capture_rows(model, anatomy, tiny_inputs(model), anatomy.last).hidden.flatten(0, 1)
    rows = hidden.clone().requires_grad_()
    logits = tail(rows)
    torch.testing.assert_close(logits[4:5], tail(hidden[4:5]), **CLOSE)
    logits[4, 2].backward()
    assert rows.grad is not None
    assert rows.grad[4].any()
    assert not rows.grad[:4].any()
    assert tail(hidden[:0]).shape == (0, logits.shape[1])


@pytest.mark.parametrize("name", FOUND)
def test_the_query_is_what_the_ffn_is_given(name: str) -> None:
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    inputs = tiny_inputs(model)
    for block in range(anatomy.block_count):
        with hooks.captured(anatomy.query_module(model, block)) as calls:
            model(**inputs)
        query = capture_rows(model, anatomy, inputs, block).query
        assert torch.equal(query, calls[0].args[0])
        assert query.shape[-1] == WIDTH


def test_the_pooled_position_is_found() -> None:
    pooled = {"gpt2-labels": -1, "bert-labels": 0, "roberta-labels": 0, "gpt2": None, "t5": None}
    for name, position in pooled.items():
        model = tiny_model(name)
        assert find_tail(model, find_anatomy(model)).pooled == position


def test_the_row_tail_follows_a_model_that_changes() -> None:
    model = tiny_model("bart")
    anatomy = find_anatomy(model)
    tail = find_tail(model, anatomy)
    model.final_logits_bias += 3.0
    rows = capture_rows(model, anatomy, tiny_inputs(model), anatomy.last)
    torch.testing.assert_close(tail(rows.hidden[0]), rows.logits[0], **CLOSE)


@pytest.mark.parametrize("name", NORMED_FFN)
def test_a_model_that_normalises_its_ffn_output_has_no_row_tail(name: str) -> None:
    model = tiny_model(name)
    with pytest.raises(ModelError, match=r"mlp\.down_proj.*changed before it joins the residual"):
        find_tail(model, find_anatomy(model))
    assert is_clean(model)


def test_a_model_that_scales_its_ffn_output_has_no_row_tail() -> None:
    model = tiny_model("granite")
    for layer in model.model.layers:
        layer.residual_multiplier = 0.5
    with pytest.raises(ModelError, match="changed before it joins the residual"):
        find_tail(model, find_anatomy(model))


def test_a_soft_cap_on_the_logits_is_part_of_the_row_tail() -> None:
    model = tiny_model("gemma2")
    for layer in model.model.layers:
        layer.post_feedforward_layernorm = nn.Identity()
    anatomy = find_anatomy(model)
    rows = capture_rows(model, anatomy, tiny_inputs(model), anatomy.last)
    logits = _tail_logits(find_tail(model, anatomy), rows.hidden)
    assert rows.logits.abs().max() <= model.config.final_logit_softcapping
    torch.testing.assert_close(logits, rows.logits, **CLOSE)


def test_a_named_norm_that_never_runs_is_refused() -> None:
    model = tiny_model("gpt2")
    model.transformer.spare_norm = nn.LayerNorm(WIDTH)
    anatomy = find_anatomy(model, {"final_norm": "transformer.spare_norm"})
    with pytest.raises(ModelError, match=r"transformer\.spare_norm.*does not run"):
        find_tail(model, anatomy)


def test_a_missing_norm_behind_the_residual_sum_is_named() -> None:
    model = tiny_model("bart")
    anatomy = find_anatomy(model, {"norm_after": "none"})
    with pytest.raises(ModelError, match=r"a norm behind the sum was not found.*norm_after"):
        find_tail(model, anatomy)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llama", {"final_norm": "none"}),
        ("opt-projected", {"head": "model.decoder.project_out"}),
        ("gpt2", {"final_norm": "transformer.h.0.ln_1"}),
    ],
)
def test_where_a_module_is_missing_the_model_itself_is_the_tail(
    name: str, overrides: dict[str, str]
) -> None:
    model = tiny_model(name)
    anatomy = find_anatomy(model, overrides)
    tail = find_tail(model, anatomy)
    assert len(tail.steps) == 1 + (anatomy.norm_after is not None)
    rows = capture_rows(model, anatomy, tiny_inputs(model), anatomy.last)
    torch.testing.assert_close(tail(rows.hidden.flatten(0, 1)), rows.logits.flatten(0, 1), **CLOSE)
    assert is_clean(model)


def test_rows_that_do_not_give_the_logits_are_refused() -> None:
    """The model's end looks along the sequence."""
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda _, __, out: out + out.mean(1, keepdim=True))
    anatomy = find_anatomy(model)
    with pytest.raises(ModelError, match=r"does not give the logits.*row by row"):
        find_tail(model, anatomy)
    assert "row by row" in settled(model, anatomy).no_rows


def test_where_blocks_run_more_than_once_the_module_around_them_is_the_place() -> None:
    model = tiny_model("opt")
    model.model.decoder.layers[2] = model.model.decoder.layers[1]
    anatomy = settled(model, find_anatomy(model))
    assert (anatomy.blocks, anatomy.block_count, anatomy.is_one) == ("model.decoder", 1, True)
    rows = capture_rows(model, anatomy, tiny_inputs(model), 0)
    tail = find_tail(model, anatomy)
    torch.testing.assert_close(tail(rows.hidden.flatten(0, 1)), rows.logits.flatten(0, 1), **CLOSE)


@pytest.mark.parametrize("name", BLOCK_SITED)
def test_a_model_whose_ffn_has_no_site_is_edited_at_its_last_block(name: str) -> None:
    model = tiny_model(name)
    anatomy = settled(model, find_anatomy(model))
    assert not anatomy.is_at_ffn and not anatomy.no_rows
    inputs, last = tiny_inputs(model), anatomy.block(model, anatomy.last)
    rows = capture_rows(model, anatomy, inputs, anatomy.last)
    assert torch.equal(rows.query, rows.hidden)
    value = torch.linspace(-1, 1, WIDTH)
    with hooks.added(last, value):
        expected = logits_of(model, inputs)
    tail = find_tail(model, anatomy)
    found = tail((rows.hidden + value).flatten(0, 1))
    torch.testing.assert_close(found, expected.flatten(0, 1), **CLOSE)
    assert not torch.allclose(expected, rows.logits)


class Boom(Exception):
    pass


def _boom(*_: Any, **__: Any) -> Tensor:
    raise Boom


@pytest.mark.parametrize("name", ["gpt2", "t5", "bert-labels"])
def test_no_hook_outlives_an_exception(name: str) -> None:
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    inputs = tiny_inputs(model)
    recording = record(model, anatomy, inputs, [anatomy.block_count])
    head = model.get_submodule(anatomy.head)
    with hooks.bypassed(head, _boom):
        for attempt in (
            lambda: record(model, anatomy, inputs, [0]),
            lambda: capture_rows(model, anatomy, inputs, 0),
            lambda: find_tail(model, anatomy),
            lambda: find_anatomy(model),
            lambda: finish(model, anatomy, recording, recording.hidden[anatomy.block_count]),
        ):
            with pytest.raises(Boom):
                attempt()
    assert is_clean(model)


def test_every_hook_is_taken_off_when_its_block_raises() -> None:
    module = nn.Linear(2, 2)
    for hook in (
        hooks.captured(module),
        hooks.watched({0: module}, lambda _, __: None),
        hooks.altered(module, torch.neg),
        hooks.added(module, torch.ones(2)),
        hooks.replaced(module, torch.ones(2)),
        hooks.bypassed(module, _boom),
    ):
        with pytest.raises(Boom), hook:
            raise Boom
        assert is_clean(module)


def test_bypassing_gives_back_a_forward_that_was_set_on_the_module() -> None:
    module = nn.Identity()
    module.forward = torch.neg  # type: ignore[method-assign]
    with hooks.bypassed(module, torch.abs):
        assert module(torch.tensor(-2.0)) == 2.0
    assert module(torch.tensor(-2.0)) == 2.0
    assert module.forward is torch.neg


def test_only_the_hidden_state_of_a_tuple_is_altered() -> None:
    module = nn.Identity()
    with hooks.altered(module, lambda hidden: hidden + 1), hooks.captured(module) as calls:
        assert module((torch.zeros(2), "rest"))[1] == "rest"
    assert torch.equal(calls[0].hidden, torch.ones(2))


def _tail_logits(tail: Any, hidden: Tensor) -> Tensor:
    """The logits of a batch [B, T, d], through its rows."""
    if tail.pooled is not None:
        return tail(hidden[:, tail.pooled])
    return tail(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
