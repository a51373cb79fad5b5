"""The traced pass gives the bits of the model's own modules, or is not used."""

from __future__ import annotations

import pytest
import torch

from continual.anatomy import find_anatomy
from continual.passes import site_pass
from continual.passes.partial import capture_answers, capture_site
from continual.passes.site_pass import SHORT, TRACED_AFTER, SitePass, needs_mask, traced
from tests.tiny_models import tiny_model

DECODERS = ("gpt2", "llama", "gpt-neox", "opt", "mistral")


def batch(length: int, seed: int = 0, sequences: int = 1) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(3, 60, (sequences, length), generator=draw)}


def padded(lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Sequences with padding behind them, and its mask."""
    inputs = batch(max(lengths), sequences=len(lengths))
    mask = torch.tensor([[int(i < length) for i in range(max(lengths))] for length in lengths])
    return {"input_ids": inputs["input_ids"] * mask, "attention_mask": mask}


def some_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Every other position of a batch."""
    return torch.arange(0, inputs["input_ids"].numel(), 2)


def shown(passing: SitePass, inputs: dict[str, torch.Tensor]):
    return passing(inputs, some_of(inputs))


def own_of(model, anatomy, inputs):
    """By the model's own modules."""
    return capture_answers(model, anatomy, inputs, some_of(inputs))


def warm(model, anatomy) -> SitePass:
    passing = SitePass(model, anatomy)
    for _ in range(TRACED_AFTER):
        shown(passing, batch(5))
    return passing


def trace_of(passing: SitePass):
    return passing._short._trace


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox", "opt", "opt-post-norm", "gptj"])
def test_some_positions_are_shown_as_in_a_pass_over_all(name):
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    inputs = padded((7, 3, 5))
    rows = torch.tensor([0, 6, 8, 9, 16])
    found = capture_answers(model, anatomy, inputs, rows)
    whole = capture_site(model, anatomy, inputs, anatomy.last)
    for some, every in zip(found, whole, strict=True):
        assert torch.allclose(some, every.flatten(0, 1)[rows], atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_after_some_dozens_of_passes_the_bits_are_still_the_models_own(name):
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    passing = warm(model, anatomy)
    for length in (1, 2, 3, 8, 13, 24):
        for sequences in (1, 2, 5):
            inputs = batch(length, length, sequences)
            own = own_of(model, anatomy, inputs)
            assert all(map(torch.equal, shown(passing, inputs), own)), (length, sequences)


@pytest.mark.parametrize("name", DECODERS)
def test_padding_behind_a_sequence_changes_nothing_of_it(name):
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    assert not needs_mask(model, anatomy)
    passing = warm(model, anatomy)
    lengths = (7, 3, 5)
    inputs = padded(lengths)
    real = inputs["attention_mask"].flatten().nonzero().squeeze(-1)
    found = passing(inputs, real)
    for one, other in zip(found, capture_answers(model, anatomy, inputs, real), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_a_model_that_looks_at_padding_is_given_its_mask(monkeypatch):
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)
    real = site_pass.capture_site

    def looking(given, parts, inputs, block):
        query, hidden = real(given, parts, inputs, block)
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        return query * mask.sum(1)[:, None, None], hidden

    monkeypatch.setattr(site_pass, "capture_site", looking)
    assert needs_mask(model, anatomy)
    given = []
    monkeypatch.setattr(
        site_pass, "capture_answers", lambda *a: given.append(a[2]) or capture_answers(*a)
    )
    shown(SitePass(model, anatomy), padded((6, 2)))
    assert "attention_mask" in given[0]


def test_a_gpt2_is_traced():
    model = tiny_model("gpt2")
    assert trace_of(warm(model, find_anatomy(model))) is not None


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_short_pass_that_is_given_its_mask_has_fewer_steps(name):
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    given, own = (traced(model, anatomy, masked=masked) for masked in (True, False))
    assert given is not None and own is not None
    steps, more = (len(list(trace._run.graph.nodes())) for trace in (given, own))
    assert steps < more


def test_a_model_with_a_window_keeps_to_it_in_long_passes():
    """No pass is given a mask that is longer than what was checked."""
    model = tiny_model("mistral")
    model.config.sliding_window = SHORT + 4
    anatomy = find_anatomy(model)
    passing = SitePass(model, anatomy)
    for length in [5] * TRACED_AFTER + [SHORT + 12] * (TRACED_AFTER + 1):
        shown(passing, batch(length))
    assert trace_of(passing) is not None
    inputs = batch(SHORT + 12, 1)
    assert all(map(torch.equal, shown(passing, inputs), own_of(model, anatomy, inputs)))


def test_weights_changed_in_place_act_in_the_trace():
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)
    passing = warm(model, anatomy)
    before = shown(passing, batch(6))[1]
    with torch.no_grad():
        anatomy.down_weight(model, 0).add_(1.0)
    found = shown(passing, batch(6))
    assert not torch.equal(found[1], before)
    assert all(map(torch.equal, found, own_of(model, anatomy, batch(6))))


def test_a_trace_that_is_not_the_same_for_every_shape_is_not_used(monkeypatch):
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)

    def branching(*given):
        query, hidden = capture_answers(*given)
        return query * (2.0 if given[2]["input_ids"].shape[1] == 7 else 1.0), hidden

    monkeypatch.setattr(site_pass, "capture_answers", branching)
    assert traced(model, anatomy, masked=False) is None
    assert traced(model, anatomy, masked=True) is None


def test_a_model_that_cannot_be_traced_goes_on_by_its_own_modules(monkeypatch):
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)

    def fail(*_, **__):
        raise RuntimeError("not traceable")

    monkeypatch.setattr(torch.jit, "trace", fail)
    passing = warm(model, anatomy)
    assert trace_of(passing) is None
    own = own_of(model, anatomy, batch(9))
    assert all(map(torch.equal, shown(passing, batch(9)), own))
