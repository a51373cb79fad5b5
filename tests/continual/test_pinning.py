"""What ends a search early, and what pins the lengths of its values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from continual.editors.memit import MemitConfig
from continual.errors import CeditError
from continual.locate_then_edit import targets as search
from continual.locate_then_edit.config import LocateThenEditConfig
from continual.locate_then_edit.edit_texts import texts_of_edit
from continual.locate_then_edit.pinning import LONGEST, mean_length, pinned
from continual.locate_then_edit.targets import find_targets
from continual.patches.low_rank import Factors, FfnLowRankPatch
from continual.site import Site
from tests.continual.associative_bench import (
    edit_of,
    edited_of,
    known,
    mediating_decoder,
    site_of,
)
from tests.tiny_language import correction

CONFIG = LocateThenEditConfig(
    contexts=0, clamp_norm_factor=4.0, precision="highest", stop_loss=1e-9, steps_max=30
)


@pytest.fixture
def site() -> Iterator[Site]:
    with edited_of(copy.deepcopy(mediating_decoder())) as edited:
        yield site_of(edited)


def batch_of(site: Site, *countries: int):
    edits = [edit_of(site, correction(c) | {"prompt": known(c)}) for c in countries]
    return [texts_of_edit(edit, [""], site) for edit in edits]


def test_a_search_ends_so_many_steps_after_its_target_leads(site, monkeypatch):
    """By the loop's own evaluations: the first one at which the target leads, and four more."""
    batch = batch_of(site, 1, 2, 3)
    seen: list[torch.Tensor] = []
    evaluate = search.ValueSearch.evaluation

    def watched(self, delta):
        found = evaluate(self, delta)
        seen.append(found.is_done.clone())
        return found

    monkeypatch.setattr(search.ValueSearch, "evaluation", watched)
    whole = find_targets(site, batch, 0, CONFIG)
    assert whole.steps == (30, 30, 30)
    leads = torch.stack(seen)  # [steps + 1, n]
    assert bool(leads[-1].all())
    for lead_steps in (0, 4):
        early = find_targets(site, batch, 0, replace(CONFIG, lead_steps=lead_steps))
        for request in range(3):
            run = 0
            for step in range(31):
                run = run + 1 if bool(leads[step, request]) else 0
                if run > lead_steps:
                    break
            assert early.steps[request] == step
        assert all(early.arrived)
    with pytest.raises(CeditError, match="lead_steps"):
        MemitConfig(lead_steps=-1)


def test_the_mean_leaves_the_longest_out():
    states = torch.eye(4).repeat(5, 1) * torch.tensor([*[1.0] * 10, *[3.0] * 9, 100.0])[:, None]
    assert mean_length(states) == pytest.approx((10 + 27) / 19)
    assert mean_length(states[:1]) == 1.0


def test_values_of_an_edited_model_have_the_length_of_the_base_s(site):
    batch = batch_of(site, 1, 2, 3)
    pilots = find_targets(site, batch, 0, CONFIG)
    mean = float(pilots.states.norm(dim=1).mean())
    assert torch.allclose(
        pinned(site, batch, pilots, 0, CONFIG).states.norm(dim=1), torch.full((3,), mean)
    )
    weight = site.edited.weight(0).base
    left = torch.randn(weight.shape[0], 2, generator=torch.Generator().manual_seed(0))
    right = torch.full((2, weight.shape[1]), 0.01)
    site.edited.put([FfnLowRankPatch.of({0: Factors(left, right)}, {}, ("other",) * 2)])
    now = find_targets(site, batch, 0, CONFIG)
    assert not torch.allclose(now.states.norm(dim=1), torch.full((3,), mean), rtol=1e-3)
    found = pinned(site, batch, now, 0, CONFIG)
    assert torch.allclose(found.states.norm(dim=1), torch.full((3,), mean), rtol=1e-5)
    unit = torch.nn.functional.normalize
    assert torch.allclose(unit(found.states), unit(now.states), atol=1e-6)
    assert found.arrived == now.arrived


def test_a_value_that_is_far_too_long_did_not_arrive(site):
    batch = batch_of(site, 1, 2, 3)
    pilots = find_targets(site, batch, 0, CONFIG)
    site.edited.put(
        [
            FfnLowRankPatch.of(
                {0: Factors(torch.zeros(site.edited.anatomy.ffn_width, 1), torch.zeros(1, 64))},
                {},
                ("none",),
            )
        ]
    )
    states = pilots.states.clone()
    states[1] *= (LONGEST + 1) * float(pilots.states.norm(dim=1).max()) / states[1].norm()
    found = pinned(site, batch, replace(pilots, states=states), 0, CONFIG)
    assert found.arrived == (True, False, True)
