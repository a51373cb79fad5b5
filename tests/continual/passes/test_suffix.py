"""The ends of sequences, run behind kept beginnings, are what whole passes give."""

from __future__ import annotations

import math

import pytest
import torch
import transformers

from continual.anatomy import find_anatomy
from continual.hooks import attending, captured
from continual.passes import suffix
from continual.passes.suffix import Ends, PackedEnds, WholeSequences, keeps_prefixes
from tests.tiny_models import tiny_model

PACKED = ["gpt2", "gpt-neox", "gptj", "llama", "opt", "opt-post-norm", "mistral", "qwen3", "phi3"]
IDS = (
    (5, 9, 14, 22, 31, 40, 12),
    (7, 8, 9),
    (50, 41, 33, 21, 17),
    (3, 6, 9, 12, 15, 18, 21, 24, 27),
)
STARTS = (4, 0, 2, 1)
SIZES = [len(ids) - start for ids, start in zip(IDS, STARTS, strict=True)]


def whole(model, anatomy, ids, moved=None):
    """The last block's sums [T, d] in a full pass, with a vector added to the sums of a block."""
    norm = anatomy.norm_after_module(model, anatomy.last)
    module = anatomy.block(model, anatomy.last) if norm is None else norm
    handle = None
    if moved is not None:
        handle = moving(model, anatomy, *moved)
    with torch.no_grad(), captured(module) as calls:
        model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    if handle is not None:
        handle.remove()
    found = calls[0].hidden if norm is None else calls[0].input
    return found.reshape(len(ids), -1)


def moving(model, anatomy, block, position, vector):
    """A hook that adds a vector to the residual sum of a block: before the norm, if one follows."""
    norm = anatomy.norm_after_module(model, block)

    def moved(hidden):
        hidden = hidden.clone()
        hidden.view(-1, hidden.shape[-1])[position] += vector
        return hidden

    if norm is not None:
        return norm.register_forward_pre_hook(lambda _, args: (moved(args[0]), *args[1:]))

    def add(_, __, output):
        return (
            moved(output) if isinstance(output, torch.Tensor) else (moved(output[0]), *output[1:])
        )

    return anatomy.block(model, block).register_forward_hook(add)


def packed(model, block, padded=2.0):
    return PackedEnds(model, find_anatomy(model), Ends(IDS, STARTS), block, padded)


AT_ONCE = (0,) * len(IDS)  # rows from where the ends begin


def rows_of(run, sequence, starts=AT_ONCE, sizes=SIZES):
    positions = torch.arange(sizes[sequence]) + starts[sequence]
    return run.row(torch.full_like(positions, sequence), positions)


@pytest.mark.parametrize("name", PACKED)
def test_a_known_decoder_keeps_prefixes(name):
    model = tiny_model(name)
    assert keeps_prefixes(model, find_anatomy(model))


@pytest.mark.parametrize("name", ["gemma2"])
def test_attention_that_is_told_more_than_is_known_of_is_left_alone(name):
    """Its scores have a soft cap."""
    model = tiny_model(name)
    assert not keeps_prefixes(model, find_anatomy(model))


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("block", [0, 1, 2])
def test_what_is_added_at_the_start_of_an_end_moves_the_end_as_in_a_whole_pass(name, block):
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    found = packed(model, block)
    vectors = torch.randn(len(IDS), anatomy.width, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 0.0, 3.0):  # again and again from the same recording
        sums = found.sums.clone()
        for i in range(len(IDS)):
            sums[rows_of(found, i)[0]] += scale * vectors[i]
        with torch.no_grad():
            last = found.last_sums(sums)
        for i, (ids, start) in enumerate(zip(IDS, STARTS, strict=True)):
            expected = whole(model, anatomy, ids, (block, start, scale * vectors[i]))[start:]
            torch.testing.assert_close(last[rows_of(found, i)], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*PACKED, "gemma2"])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_whole_sequences_are_what_each_of_them_is(name, block):
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    found = WholeSequences(model, anatomy, IDS, block, pad=0)
    vector = torch.randn(anatomy.width, generator=torch.Generator().manual_seed(0))
    sizes = [len(ids) for ids in IDS]
    sums = found.sums.clone()
    for i in range(len(IDS)):
        sums[rows_of(found, i, sizes=sizes)[1]] += vector
    with torch.no_grad():
        last = found.last_sums(sums)
    for i, ids in enumerate(IDS):
        expected = whole(model, anatomy, ids, (block, 1, vector))
        rows = rows_of(found, i, sizes=sizes)
        torch.testing.assert_close(last[rows], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj"])
def test_gradients_are_those_of_whole_passes(name):
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    ends, wholes = packed(model, 0), WholeSequences(model, anatomy, IDS, 0, pad=0)
    gradients = []
    for run, starts in ((ends, AT_ONCE), (wholes, STARTS), (ends, AT_ONCE)):
        rows = [rows_of(run, i, starts) for i in range(len(IDS))]
        sums = run.sums.clone().requires_grad_()
        run.last_sums(sums)[torch.cat(rows)].square().sum().backward()
        gradients.append(torch.cat([sums.grad[some] for some in rows]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)
    assert torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("chosen", [[2, 0], [3], [1, 2, 3]])
def test_some_of_the_sequences_come_out_as_all_of_them_do(name, chosen):
    every = packed(tiny_model(name), 0, padded=math.inf)
    some = every.select(chosen)
    with torch.no_grad():
        before = every.last_sums(every.sums)
        found = some.last_sums(some.sums)
        again = every.last_sums(every.sums)
    for j, i in enumerate(chosen):
        rows = rows_of(some, j, sizes=[SIZES[i] for i in chosen])
        torch.testing.assert_close(found[rows], before[rows_of(every, i)], atol=1e-5, rtol=1e-5)
    assert torch.equal(again, before)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("block", [0, 1])
def test_answers_are_rows_of_the_last_sums_and_have_their_gradient(name, block):
    model = tiny_model(name)
    found = packed(model, block)
    rows = torch.tensor([0, 3, 4, sum(SIZES) - 1])
    seen = []
    for way in (
        lambda sums: found.answers(sums, rows),
        lambda sums: found.last_sums(sums)[rows],
    ):
        sums = found.sums.clone().requires_grad_()
        states = way(sums)
        states.square().sum().backward()
        seen.append((states.detach(), sums.grad))
    torch.testing.assert_close(*[states for states, _ in seen])
    torch.testing.assert_close(*[gradient for _, gradient in seen])


def test_a_model_whose_attention_is_its_own_is_noticed(monkeypatch):
    """It goes on with its own, over all tokens of the row."""
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)
    monkeypatch.setattr(suffix.hooks, "attending", lambda model, attend: captured(model))
    assert not keeps_prefixes(model, anatomy)


def test_prefixes_that_are_read_wrongly_are_noticed(monkeypatch):
    model = tiny_model("gpt2")
    attention = suffix.attention

    def wrong(asked, packing, kept):
        for one in kept:
            one.keys.add_(1.0)
        return attention(asked, packing, kept)

    monkeypatch.setattr(suffix, "attention", wrong)
    assert not keeps_prefixes(model, find_anatomy(model))


def test_layers_of_a_kind_that_is_not_known_are_left_alone():
    model = tiny_model("llama")
    model.config.layer_types = ["chunked_attention"] * 3
    assert not keeps_prefixes(model, find_anatomy(model))


def test_a_window_that_attention_is_not_told_of_is_noticed():
    """It would be in the mask alone, and the sample is shorter than it."""
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)
    model.config.sliding_window = 64
    assert not keeps_prefixes(model, anatomy)
    model.config.layer_types = ["full_attention"] * 3
    assert keeps_prefixes(model, anatomy)


def test_a_model_has_its_own_attention_again():
    model = tiny_model("gptj")
    before = model.config._attn_implementation
    with pytest.raises(KeyError), attending(model, torch.nn.Module.forward):
        assert model.config._attn_implementation != before
        raise KeyError
    assert model.config._attn_implementation == before
    assert all("_attn" not in module.__dict__ for module in model.modules())


def test_the_parts_of_a_model_have_their_own_attention_again():
    model = torch.nn.Module()
    model.config = transformers.LlavaConfig()
    model.config._attn_implementation = {"text_config": "eager", "vision_config": "sdpa"}
    with attending(model, torch.nn.Module.forward):
        assert model.config.text_config._attn_implementation.startswith("cedit")
    assert model.config.text_config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_two_models_are_run_at_once_each_by_its_own_attention():
    one, other = tiny_model("gpt2"), tiny_model("llama")
    asked = []

    def attend_by(name):
        def attend(call):
            asked.append(name)
            return call.query.transpose(1, 2)

        return attend

    with attending(one, attend_by("one")), attending(other, attend_by("other")), torch.no_grad():
        one(input_ids=torch.tensor([[1, 2]]))
        other(input_ids=torch.tensor([[1, 2]]))
        one(input_ids=torch.tensor([[1, 2]]))
    assert asked == ["one"] * 3 + ["other"] * 3 + ["one"] * 3
