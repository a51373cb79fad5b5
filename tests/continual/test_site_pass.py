"""The traced pass gives the bits of the model's own modules, or is not used."""

from __future__ import annotations

import pytest
import torch

from continual import site_pass
from continual.anatomy import find_anatomy
from continual.partial import capture_site
from continual.site_pass import TRACED_AFTER, SitePass
from tests.tiny_models import tiny_model

DECODERS = ("gpt2", "llama", "gpt-neox", "opt")


def one(length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(3, 60, (1, length), generator=draw)}


def warm(model, anatomy) -> SitePass:
    passing = SitePass(model, anatomy)
    for _ in range(TRACED_AFTER):
        passing(one(5))
    return passing


@pytest.mark.parametrize("name", DECODERS)
def test_after_some_dozens_of_passes_the_bits_are_still_the_models_own(name):
    model = tiny_model(name)
    anatomy = find_anatomy(model)
    passing = warm(model, anatomy)
    for length in (1, 2, 3, 8, 13, 24):
        own = capture_site(model, anatomy, one(length, seed=length), anatomy.last)
        found = passing(one(length, seed=length))
        assert all(map(torch.equal, found, own)), length


def test_a_gpt2_is_traced():
    model = tiny_model("gpt2")
    assert warm(model, find_anatomy(model))._trace is not None


def test_weights_changed_in_place_act_in_the_trace():
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)
    passing = warm(model, anatomy)
    before = passing(one(6))[1]
    with torch.no_grad():
        anatomy.down_weight(model, 0).add_(1.0)
    found = passing(one(6))
    assert not torch.equal(found[1], before)
    assert all(map(torch.equal, found, capture_site(model, anatomy, one(6), anatomy.last)))


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
    own = capture_site(model, anatomy, one(9), anatomy.last)
    assert all(map(torch.equal, passing(one(9)), own))
