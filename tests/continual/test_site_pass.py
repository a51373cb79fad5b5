"""The traced pass gives the bits of the model's own modules, or is not used."""

from __future__ import annotations

import pytest
import torch

from continual import site_pass
from continual.anatomy import find_anatomy
from continual.partial import capture_site
from continual.site_pass import TRACED_AFTER, SitePass, needs_mask
from tests.tiny_models import tiny_model

DECODERS = ("gpt2", "llama", "gpt-neox", "opt")


def batch(length: int, seed: int = 0, sequences: int = 1) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(3, 60, (sequences, length), generator=draw)}


def padded(lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Sequences with padding behind them, and its mask."""
    inputs = batch(max(lengths), sequences=len(lengths))
    mask = torch.tensor([[int(i < length) for i in range(max(lengths))] for length in lengths])
    return {"input_ids": inputs["input_ids"] * mask, "attention_mask": mask}


def warm(model, anatomy) -> SitePass:
    passing = SitePass(model, anatomy)
    for _ in range(TRACED_AFTER):
        passing(batch(5))
    return passing


@pytest.mark.parametrize("name", DECODERS)
def test_after_some_dozens_of_passes_the_bits_are_still_the_models_own(name):
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    passing = warm(model, anatomy)
    for length in (1, 2, 3, 8, 13, 24):
        for sequences in (1, 2, 5):
            inputs = batch(length, length, sequences)
            own = capture_site(model, anatomy, inputs, anatomy.last)
            assert all(map(torch.equal, passing(inputs), own)), (length, sequences)


@pytest.mark.parametrize("name", DECODERS)
def test_padding_behind_a_sequence_changes_nothing_of_it(name):
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    assert not needs_mask(model, anatomy)
    passing = warm(model, anatomy)
    lengths = (7, 3, 5)
    inputs = padded(lengths)
    found, own = passing(inputs), capture_site(model, anatomy, inputs, anatomy.last)
    for i, length in enumerate(lengths):
        for one, other in zip(found, own, strict=True):
            assert torch.allclose(one[i, :length], other[i, :length], atol=1e-4)


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
    inputs = padded((6, 2))
    own = looking(model, anatomy, inputs, anatomy.last)
    assert all(map(torch.equal, SitePass(model, anatomy)(inputs), own))


def test_a_gpt2_is_traced():
    model = tiny_model("gpt2")
    assert warm(model, find_anatomy(model))._trace is not None


def test_weights_changed_in_place_act_in_the_trace():
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)
    passing = warm(model, anatomy)
    before = passing(batch(6))[1]
    with torch.no_grad():
        anatomy.down_weight(model, 0).add_(1.0)
    found = passing(batch(6))
    assert not torch.equal(found[1], before)
    assert all(map(torch.equal, found, capture_site(model, anatomy, batch(6), anatomy.last)))


def test_a_trace_that_is_not_the_same_for_every_length_is_not_used(monkeypatch):
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)
    real = site_pass.capture_site

    def branching(*given):
        query, hidden = real(*given)
        return query * (2.0 if given[2]["input_ids"].shape[1] == 7 else 1.0), hidden

    monkeypatch.setattr(site_pass, "capture_site", branching)
    assert site_pass._trace(model, anatomy) is None


def test_a_model_that_cannot_be_traced_goes_on_by_its_own_modules(monkeypatch):
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)

    def fail(*_, **__):
        raise RuntimeError("not traceable")

    monkeypatch.setattr(torch.jit, "trace", fail)
    passing = warm(model, anatomy)
    assert passing._trace is None
    own = capture_site(model, anatomy, batch(9), anatomy.last)
    assert all(map(torch.equal, passing(batch(9)), own))
