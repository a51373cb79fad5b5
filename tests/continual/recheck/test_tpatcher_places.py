"""T-Patcher at other places than the last FFN: right, silent on what it is told, and replayed."""

from __future__ import annotations

import pytest
import torch

from continual.editors.protected_tokens import ProtectedTokens
from continual.editors.tpatcher import TPatcherConfig
from continual.effects.places import FFN, HIDDEN, POOLED, GatePlace
from continual.errors import EditError
from continual.history.rehearsing import recompute
from continual.passes.partial import logits_of
from continual.requests import Request
from continual.session import Session
from tests.continual.conftest import reopened
from tests.continual.recheck.conftest import from_scratch
from tests.tiny_language import CAPITALS, LABELS, correction

PLACES = {
    "an inner FFN": {"block": 0},
    "a block's output": {"block": 0, "key": HIDDEN},
    "pooled": {"block": 0, "key": POOLED},
    "remote": {"block": 0, "key": HIDDEN, "value_block": 1, "value": FFN},
    "behind the last FFN": {"block": 1, "key": HIDDEN},
}


def requests(session: Session) -> list[Request]:
    is_causal = session.site.task.name != "classification"
    targets = CAPITALS if is_causal else LABELS
    return [Request.from_json(correction(c, targets[(c + 1) % len(targets)])) for c in (2, 3, 4)]


def apply(session: Session, table: dict) -> list:
    settings = session.settings(chain=("tpatcher",), editors={"tpatcher": table}, force=True)
    return list(session.apply_requests(requests(session), settings))


@pytest.mark.parametrize("table", PLACES.values(), ids=PLACES)
def test_corrections_hold_are_measured_and_made_again_at_any_place(gated, table):
    table = {**table, "asks_subject": False}
    base = gated.run_state.ledger.outcomes()
    steps = apply(gated, table)
    outcomes = [outcome for step in steps for outcome in step.outcomes]
    applied = [outcome for outcome in outcomes if outcome.outcome == "applied"]
    assert len(applied) > 1
    place = TPatcherConfig.of(table).place(gated.site.place)
    assert gated.edited.gates(place).size > 0
    outcomes = gated.run_state.ledger.outcomes()
    assert outcomes == from_scratch(gated)
    assert all(outcomes[f"{o.id}:edit:0"] for o in applied)
    assert not gated.run_state.ledger.remeasure()
    fingerprint = gated.edited.fingerprint

    session = reopened(gated)
    assert session.edited.fingerprint == fingerprint
    assert session.run_state.ledger.outcomes() == outcomes
    made = list(recompute(session, session.store.lineage("head")[-3:]))
    assert [m.difference for m in made if not m.is_same] == []

    session.revert(applied[1].id)
    ledger = session.run_state.ledger
    assert ledger.outcomes() == from_scratch(session)
    assert not ledger.remeasure()
    session.rollback("head~1")
    assert session.edited.fingerprint == fingerprint
    assert session.run_state.ledger.outcomes() == outcomes
    session.rollback("head~3")
    assert session.run_state.ledger.outcomes() == base == from_scratch(session)
    session.close()


def test_a_neuron_elsewhere_is_silent_on_all_tokens_of_what_it_is_told(gated):
    place = GatePlace.at(0, HIDDEN)
    training = gated.run_state.known_answers().training
    inputs = [gated.site.inputs([encoding]) for encoding in training]
    before = [logits_of(gated.edited.model, given) for given in inputs]
    apply(gated, {"block": 0, "key": HIDDEN, "asks_subject": False})
    memory = ProtectedTokens(gated.site, place).memory(gated.run_state.known_answers())
    assert len(memory.training) >= sum(len(encoding.ids) for encoding in training) - 60
    bank = gated.edited.gates(place)
    assert bool((memory.training @ bank.keys.T + bank.bias < 0).all())
    gone = gated.run_state.known_answers().contradicted
    after = [logits_of(gated.edited.model, given) for given in inputs]
    same = [
        torch.equal(b, a)
        for i, (b, a) in enumerate(zip(before, after, strict=True))
        if i not in gone
    ]
    assert same and all(same)


def test_a_place_that_the_model_has_not_is_refused_by_its_name():
    with pytest.raises(EditError, match="blocks 0 to 1"):
        TPatcherConfig(block=7).place(GatePlace.at(1))
    assert TPatcherConfig().place(GatePlace.at(3)) == GatePlace.at(3)
    behind = GatePlace.at(3, HIDDEN)  # of a model whose last FFN has no site
    assert TPatcherConfig().place(behind) == behind


def test_neurons_elsewhere_ask_for_no_subject(gated):
    with pytest.raises(EditError, match="asks_subject = false"):
        apply(gated, {"block": 0, "asks_subject": True})
