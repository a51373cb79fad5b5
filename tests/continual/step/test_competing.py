"""The logits that compete while values are trained are the head's own, or all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from continual.anatomy import find_anatomy
from continual.base import PretrainedBase
from continual.editors.tpatcher.competing import competing, survey, whole
from continual.editors.tpatcher.losses import edit_loss
from continual.editors.tpatcher.training import Slots
from continual.model import EditedModel
from continual.patches.neuron import NeuronPatch
from continual.site import Site
from continual.tasks import Encoding, Question, make_task
from tests import tiny_language as language
from tests.tiny_models import VOCAB, WIDTH, tiny_model

QUESTIONS = [Encoding(Question((5, 9, 3 + i)), (2, 3), (11, 30 + i)) for i in range(3)]
RIVALS = torch.tensor([[40, 2], [40, 63]])


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    model = tiny_model(request.param)
    with EditedModel(
        PretrainedBase(model, language.tokenizer(), find_anatomy(model), "base")
    ) as edited:
        yield Site(edited, make_task(edited.base, {}))


def slots_of(site: Site) -> Slots:
    """Two slots with the answer rows of the first two questions."""
    rows = site.rows(QUESTIONS[:2])
    query, hidden = (t.view(2, 2, WIDTH) for t in (rows.query, rows.hidden))
    return Slots(query, hidden, rows.targets.view(2, 2), torch.ones(2, 2, dtype=torch.bool))


@pytest.mark.parametrize("site", ["gpt2", "llama", "gptj", "opt-post-norm"], indirect=True)
def test_they_are_the_heads_own_logits_of_the_rivals_and_the_targets(site):
    slots = slots_of(site)
    sliced, logits = competing(site, slots, RIVALS)
    tokens = torch.tensor([2, 11, 30, 31, 40, 63])
    assert torch.equal(tokens[sliced.targets], slots.targets)
    torch.testing.assert_close(logits(slots.hidden), whole(site)(slots.hidden)[..., tokens])


@pytest.mark.parametrize("site", ["gpt2", "gptj"], indirect=True)
def test_their_gradient_is_that_of_the_whole(site):
    slots = slots_of(site)
    sliced, logits = competing(site, slots, RIVALS)
    gradients = []
    for of, targets in ((logits, sliced.targets), (whole(site), slots.targets)):
        hidden = slots.hidden.clone().requires_grad_()
        of(hidden).gather(-1, targets.unsqueeze(-1)).sum().backward()
        gradients.append(hidden.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("site", ["gpt2", "opt", "llama", "granite"], indirect=True)
@pytest.mark.parametrize("part", ["whole", "slice"])
def test_the_way_down_is_the_gradient_of_the_rows_losses(site, part):
    slots = slots_of(site)
    if part == "slice":
        slots, logits = competing(site, slots, RIVALS) or (slots, whole(site))
    else:
        logits = whole(site)
    hidden = slots.hidden.clone().requires_grad_()
    (expected,) = torch.autograd.grad(edit_loss(logits(hidden), slots.targets).sum(), hidden)
    torch.testing.assert_close(logits.gradient(slots.hidden, slots.targets), expected)


@pytest.mark.parametrize(("site", "known"), [("gpt2", True), ("llama", False)], indirect=["site"])
def test_the_closed_form_is_taken_behind_a_plain_norm_only(site, known):
    assert (whole(site).plain is not None) is known


@pytest.mark.parametrize("site", ["granite"], indirect=True)
def test_all_compete_where_the_way_to_the_logits_does_not_end_in_a_head(site):
    assert competing(site, slots_of(site), RIVALS) is None


@pytest.mark.parametrize("site", ["gpt2"], indirect=True)
def test_all_compete_where_a_slice_would_spare_nothing(site):
    assert competing(site, slots_of(site), torch.arange(VOCAB // 2 + 1)) is None


@pytest.mark.parametrize("site", ["gpt2", "granite"], indirect=True)
def test_a_survey_sees_what_the_model_answers_with_the_neurons_that_are_on(site):
    rows = site.rows(QUESTIONS)
    keys = rows.query[:1] / rows.query[:1].square().sum()
    site.edited.put([NeuronPatch(site.block, keys, torch.zeros(1), torch.ones(1, WIDTH))])
    found = survey(site, rows, count=5)
    logits = site.logits(site.patched(rows))
    assert torch.equal(found.hidden, site.patched(rows))
    assert torch.equal(found.verdict.right, logits.argmax(-1) == rows.targets)
    assert torch.equal(found.rivals.sort().values, logits.topk(5).indices.sort().values)


@pytest.mark.parametrize("site", ["gpt2"], indirect=True)
def test_the_same_question_is_answered_once(site):
    rows = site.rows(QUESTIONS)
    first = site.logits(rows.hidden)
    assert site.logits(rows.hidden.clone()) is first
    assert site.logits(rows.hidden + 1) is not first


@pytest.mark.parametrize("site", ["gpt2"], indirect=True)
def test_rows_are_patched_once_for_each_state_of_the_model(site):
    rows = site.rows(QUESTIONS)
    first = site.patched(rows)
    assert site.patched(rows) is first
    key = rows.query[:1] / rows.query[:1].square().sum()
    site.edited.put([NeuronPatch(site.block, key, torch.zeros(1), torch.ones_like(key))])
    patched = site.patched(rows)
    assert not torch.equal(patched, first)
    with site.edited.before_last_neurons():
        assert torch.equal(site.patched(rows), first)
    assert torch.equal(site.patched(rows), patched)
