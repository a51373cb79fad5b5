"""CaliNet: its equation through whole passes, and slots in a history like any other edit."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from continual.choices import EDITORS
from continual.editors.calinet import Calinet, CalinetConfig
from continual.editors.calinet.training import OwnRows, SilentRows, SlotParameters, SlotTraining
from continual.effects.places import GatePlace
from continual.errors import CeditError, EditError, SharedPatch
from continual.patches import pack, unpack
from continual.patches.neuron import NeuronPatch
from continual.patches.slots import SlotsPatch
from continual.session import Session, open_session
from continual.site.rows import Rows
from continual.snapshots import Gathered
from continual.step.pipeline import Step
from continual.tasks import Encoding
from tests.continual.conftest import answers
from tests.continual.test_mixed_history import is_exact
from tests.tiny_language import ask, capital, correction

THREE = (1, 5, 12)
TABLE = {"slots": 16}


def edit(session: Session, countries: Sequence[int], **changes: object) -> list[Step]:
    """Corrections of countries, with a rephrase to learn from."""
    table = {**TABLE, **changes.pop("table", {})}  # type: ignore[dict-item]
    records = [correction(country, rephrases=[ask(country, 1)]) for country in countries]
    steps: list[Step] = session.apply(
        records, editor="calinet", editors={"calinet": table}, **changes
    )
    return steps


def texts(session: Session) -> tuple[Encoding, ...]:
    """Corrections with answers of one token and of two."""
    encode = session.site.task.encode
    one, two = correction(1)["target_new"], f"{capital(2)} {capital(3)}"
    return encode(ask(1), one), encode(ask(2, 1), two), encode(ask(31), one)


def own_rows(session: Session, given: Sequence[Encoding]) -> OwnRows:
    rows = Rows.join([session.site.rows([text]) for text in given])
    return OwnRows(rows.query, rows.hidden, rows.targets)


def training(session: Session, own: OwnRows, silent: SilentRows, **table: object) -> SlotTraining:
    config = CalinetConfig.of({"slots": 8, **table})
    draw = torch.Generator().manual_seed(3)
    return SlotTraining(own, silent, session.site.logits, config, draw, rows_max=2)


def nothing(own: OwnRows) -> SilentRows:
    return SilentRows(own.query[:0], own.query[:0])


# --- the equation, beside a plain implementation --------------------------------------------------


class PlainSlots(torch.nn.Module):
    """The last FFN of a GPT-2 with slots: FFN(h) + relu(h·W₁)·W₂, written out (eq. 4)."""

    def __init__(self, ffn: torch.nn.Module, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.ffn, self.first, self.second = ffn, first, second

    def forward(self, hidden: Tensor) -> Tensor:
        return self.ffn(hidden) + torch.relu(hidden @ self.first) @ self.second


def plain_losses(model: torch.nn.Module, given: Sequence[Encoding]) -> Tensor:
    losses = []
    for text in given:
        logits = model(input_ids=torch.tensor([text.ids])).logits[0]
        log_probs = logits[list(text.positions)].log_softmax(-1)
        losses += [-log_probs[i, token] for i, token in enumerate(text.targets)]
    return torch.stack(losses)


def plain_training(
    session: Session, given: Sequence[Encoding], units: tuple[Tensor, Tensor], steps: int
) -> tuple[Tensor, Tensor]:
    """Train W₁ [d, s] and W₂ [s, d] through the whole model, with Adam as in its paper."""
    model = copy.deepcopy(session.model).double()
    width = session.edited.anatomy.width
    draw = torch.Generator().manual_seed(3)
    parameters = [torch.randn(8, width, generator=draw).double(), torch.zeros(8, width).double()]
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in parameters]
    ffn = model.transformer.h[-1].mlp
    for step in range(1, steps + 1):
        for parameter in parameters:
            parameter.requires_grad_().grad = None
        first, second = (p * unit for p, unit in zip(parameters, units, strict=True))
        model.transformer.h[-1].mlp = PlainSlots(ffn, first.T, second)
        plain_losses(model, given).mean().backward()
        with torch.no_grad():
            for parameter, (mean, square) in zip(parameters, moments, strict=True):
                gradient = parameter.grad
                mean.mul_(0.9).add_(0.1 * gradient)
                square.mul_(0.999).add_(0.001 * gradient**2)
                m, v = mean / (1 - 0.9**step), square / (1 - 0.999**step)
                parameter -= 1e-2 * m / (v.sqrt() + 1e-8)
    return tuple((p * unit).detach() for p, unit in zip(parameters, units, strict=True))


def test_training_on_cached_rows_is_training_through_the_model(knowing):
    given, steps = texts(knowing), 12
    own = own_rows(knowing, given)
    lengths = own.query.norm(dim=1).mean(), own.hidden.norm(dim=1).mean()
    units = 1 / lengths[0].double(), (lengths[1] / own.hidden.shape[1] ** 0.5).double()
    table = {"steps_max": steps, "silent_weight": 0.0, "confidence": 1e-9}
    result = training(knowing, own, nothing(own), **table).run()
    first, second = plain_training(knowing, given, units, steps)
    assert result.steps == steps and second.abs().max() > 1e-2
    assert torch.allclose(result.slots.keys.double(), first, rtol=1e-4, atol=1e-5)
    assert torch.allclose(result.slots.values.double(), second, rtol=1e-4, atol=1e-5)


def test_a_model_with_slots_is_the_equation_written_out(knowing):
    given, draw = texts(knowing), torch.Generator().manual_seed(1)
    width = knowing.edited.anatomy.width
    keys, values = torch.randn(2, 6, width, generator=draw).unbind()
    before = plain_losses(knowing.model, given).detach()
    plain = copy.deepcopy(knowing.model)
    plain.transformer.h[-1].mlp = PlainSlots(plain.transformer.h[-1].mlp, keys.T, values)
    knowing.edited.put([SlotsPatch(knowing.site.place, keys, values, ("a",))])
    found = plain_losses(knowing.model, given).detach()
    assert torch.allclose(found, plain_losses(plain, given).detach(), atol=1e-4)
    assert (found - before).abs().max() > 0.1
    knowing.edited.take_off(0)
    assert torch.equal(plain_losses(knowing.model, given).detach(), before)


def test_slots_without_values_change_no_bit(knowing):
    given = texts(knowing)
    before = plain_losses(knowing.model, given).detach()
    keys = torch.ones(4, knowing.edited.anatomy.width)
    knowing.edited.put([SlotsPatch(knowing.site.place, keys, torch.zeros_like(keys), ("a",))])
    assert torch.equal(plain_losses(knowing.model, given).detach(), before)


def test_the_silent_term_is_the_mean_shift_of_what_is_in_memory(knowing):
    own = own_rows(knowing, texts(knowing))
    memory = torch.randn(5, own.query.shape[1], generator=torch.Generator().manual_seed(2))
    bare, held = (
        training(knowing, own, SilentRows(memory, memory[:1]), silent_weight=weight)
        for weight in (0.0, 3.0)
    )
    for made in (bare, held):
        with torch.no_grad():
            made._values += 0.1
        made._step()
    slots = held.slots()
    expected = 0.0
    for query in [*memory, memory[0]]:
        shift = torch.relu(slots.keys.detach() @ query) @ slots.values
        expected = expected + 3.0 * shift.square().sum() / 6
    expected = expected / (own.hidden.square().sum() / len(own))
    (gradient,) = torch.autograd.grad(expected, held._values)
    assert torch.allclose(held._values.grad - bare._values.grad, gradient, rtol=1e-4, atol=1e-7)


def test_what_is_in_memory_moves_less_with_the_silent_term(knowing):
    own = own_rows(knowing, texts(knowing))
    memory = torch.randn(40, own.query.shape[1], generator=torch.Generator().manual_seed(2))
    moved = []
    for weight in (0.0, 100.0):
        table = {"silent_weight": weight, "steps_max": 100}
        result = training(knowing, own, SilentRows(memory, memory[:0]), **table).run()
        moved.append(float(result.slots.shifts(memory).norm(dim=1).mean()))
    assert moved[1] < 0.5 * moved[0]


# --- the patch ------------------------------------------------------------------------------------


def slots_patch(owners: tuple[str, ...] = ("a", "b")) -> SlotsPatch:
    keys, values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind()
    return SlotsPatch(GatePlace.at(1), keys, values, owners)


def test_a_slot_patch_is_what_its_file_says():
    patch = slots_patch()
    (back,) = unpack(*pack([patch]))
    assert isinstance(back, SlotsPatch) and back.owners == ("a", "b") and back.rows == 3
    assert torch.equal(back.keys, patch.keys) and torch.equal(back.values, patch.values)
    assert pack([patch])[1]["parts"][0]["kind"] == "slots"  # older versions refuse it by name


def test_slots_go_with_their_only_owner_and_stay_with_others():
    assert slots_patch(("a",)).without("a") is None
    patch = slots_patch()
    assert patch.without("c") is patch
    with pytest.raises(SharedPatch, match=r"shares the slots of its batch with 1 others.*resolve"):
        patch.without("a")


def test_hostile_slot_patches_are_refused():
    patch = slots_patch()
    for keys, values in (
        (patch.keys, patch.values[:2]),
        (patch.keys[0], patch.values[0]),
        (patch.keys.double(), patch.values.double()),
        (patch.keys * torch.inf, patch.values),
    ):
        with pytest.raises(EditError):
            SlotsPatch(patch.place, keys, values).check()
    with pytest.raises(EditError, match="twice"):
        patch.owned_by(("a", "a"))
    with pytest.raises(EditError, match="no 'values'"):
        SlotsPatch.from_tensors({"keys": patch.keys}, patch.meta())


@pytest.mark.parametrize(
    "table", [{"slots": 0}, {"steps_max": 0}, {"learning_rate": 0.0}, {"silent_weight": -1.0}]
)
def test_settings_without_a_meaning_are_refused(table):
    with pytest.raises(CeditError, match=r"\[editor.calinet\]"):
        CalinetConfig.of(table)


# --- in the history -------------------------------------------------------------------------------


def test_a_batch_shares_its_slots_and_a_later_one_leaves_it_alone(knowing):
    before = {name: p.clone() for name, p in knowing.model.named_parameters()}
    (first,) = edit(knowing, THREE, batch_size=3)
    (second,) = edit(knowing, (2, 7), batch_size=3)
    outcomes = [*first.outcomes, *second.outcomes]
    assert [o.outcome for o in outcomes] == ["applied"] * 5
    assert {o.editor for o in outcomes} == {"calinet"} and outcomes[0].notes["slots"] == 16
    made = [correction(country) for country in (*THREE, 2, 7)]
    assert answers(knowing, made) == [True] * 5
    assert knowing.edited.site_bank.size == 32
    for name, parameter in knowing.model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert is_exact(knowing)


def test_of_a_batch_one_is_taken_out_by_making_the_step_again(knowing):
    (step,) = edit(knowing, THREE, batch_size=3)
    base, state = knowing.store.revision("base").fingerprint, knowing.edited.fingerprint
    with pytest.raises(SharedPatch, match="resolve"):
        knowing.revert(step.outcomes[1].id)
    assert knowing.edited.fingerprint == state
    done = knowing.revert(step.outcomes[1].id, resolve=True)
    assert done.rows == {"slots": 1} and len(done.resolved) == 2
    assert answers(knowing, [correction(1), correction(12)]) == [True, True]
    assert is_exact(knowing)
    knowing.rollback("base")
    assert knowing.edited.fingerprint == base


def test_slots_and_neurons_keep_their_order_through_a_snapshot(knowing):
    """A snapshot has both as neurons of one place."""
    edit(knowing, (1,))
    knowing.apply([correction(5)], editor="tpatcher")
    edit(knowing, (12,))
    parts = [
        part
        for revision in knowing.store.lineage("head")
        for part in knowing.patches(revision.patch)
    ]
    assert [part.kind for part in parts] == ["slots", "neuron", "slots"]
    path, bank = knowing.store.path, knowing.edited.site_bank
    keys, state = bank.keys.clone(), knowing.edited.fingerprint
    gathered = Gathered()
    gathered.take(parts)
    (joined,) = gathered.joined(knowing.edited)
    assert isinstance(joined, NeuronPatch) and torch.equal(joined.keys, keys)
    knowing.close()
    with open_session(path) as opened:
        assert opened.edited.fingerprint == state
        assert torch.equal(opened.edited.site_bank.keys, keys)
        assert is_exact(opened)


def test_a_request_that_the_slots_do_not_learn_fails_with_the_reason(knowing):
    (step,) = edit(knowing, (1,), table={"steps_max": 1, "slots": 1})
    (outcome,) = step.outcomes
    assert outcome.outcome == "failed" and "still wrong after 4 steps" in outcome.reason
    assert knowing.edited.site_bank.size == 0


def test_a_slot_training_that_runs_into_nan_is_a_reason_and_no_patch(knowing):
    (step,) = edit(knowing, (1,), table={"learning_rate": 1e30})
    (outcome,) = step.outcomes
    assert outcome.outcome == "failed" and "lower learning_rate" in outcome.reason


def test_slots_of_a_step_do_not_depend_on_a_limit_of_rows(knowing):
    own = own_rows(knowing, texts(knowing))
    parts = [
        SlotTraining(
            own,
            nothing(own),
            knowing.site.logits,
            CalinetConfig.of({"slots": 4, "steps_max": 5}),
            torch.Generator().manual_seed(0),
            rows_max=size,
        ).run()
        for size in (1, 100)
    ]
    assert torch.allclose(parts[0].slots.values, parts[1].slots.values, rtol=1e-4, atol=1e-6)
    assert isinstance(parts[0].slots, SlotParameters)


def test_calinet_is_an_editor_for_every_task():
    entry = EDITORS["calinet"]
    assert entry.load() is Calinet and entry.load_config() is CalinetConfig
    assert all(entry.edits(task) for task in ("causal", "seq2seq", "classification"))
