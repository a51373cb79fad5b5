"""Consolidating: many patches of matrix edits become one, or nothing changes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from continual.editors.memit import Memit, MemitConfig
from continual.history.consolidating import CannotConsolidate
from continual.history.inspection import retained_at
from continual.history.replaying import rebuild, verify
from continual.history.reverting import RevertError
from continual.patches.low_rank import FfnLowRankPatch
from continual.requests import Request
from continual.session import Session, open_session
from store import operations
from tests.continual.associative_bench import known, relative_error
from tests.continual.test_mixed_history import (
    FIRST,
    TABLES,
    apply,
    corrections,
    folder,  # noqa: F401
    fresh,  # noqa: F401
    is_exact,
)
from tests.tiny_language import CAPITALS, COUNTRIES


def low_rank(session: Session) -> list[FfnLowRankPatch]:
    """The matrix edits on at head."""
    layers = session.store.layers("head")
    parts = [part for layer in layers for part in session.patches(layer.patch)]
    return [part for part in parts if isinstance(part, FfnLowRankPatch)]


def right(session: Session, requests: Sequence[Request]) -> list[bool]:
    return [
        session.ask(r.prompt, tokens_max=len(r.target_new.split())) == r.target_new
        for r in requests
    ]


def mixture(session: Session) -> list[Request]:
    """Neurons, then MEMIT in two batches with neurons between them, then ROME's two edits."""
    requests = corrections(0, 14)
    apply(session, requests[:2], "tpatcher", batch_size=1)
    apply(session, requests[2:6], "memit")
    apply(session, requests[6:7], "tpatcher")
    apply(session, requests[7:12], "memit")
    apply(session, requests[12:14], "rome")
    assert right(session, requests) == [True] * 14
    return requests


def test_all_matrix_edits_become_one_patch_and_every_correction_holds(fresh):  # noqa: F811
    requests = mixture(fresh)
    head = fresh.store.head
    done = fresh.consolidate()
    (part,) = low_rank(fresh)
    assert done.editor == "memit" and len(done.replaced) == 3
    assert set(part.owners) == set(done.requests) == {r.id for r in requests[2:6] + requests[7:]}
    assert done.columns == (11, 11)
    assert right(fresh, requests) == [True] * 14
    assert is_exact(fresh)
    revision = fresh.store.head
    assert (revision.operation, revision.parent) == (operations.CONSOLIDATE, head.id)
    assert done.after["ER"] == 1.0 and done.before["SR"] == done.after["SR"]
    retained = retained_at(fresh.store, revision).requests
    assert set(retained) == {r.id for r in requests} and all(r.applied for r in retained.values())


def test_the_patch_is_what_one_batch_on_the_base_gives(fresh):  # noqa: F811
    """In a history of MEMIT alone: the solve for all at once, as if the batches had been one."""
    requests = corrections(0, 8)
    apply(fresh, requests[:4], "memit")
    apply(fresh, requests[4:], "memit")
    fresh.consolidate()
    (found,) = low_rank(fresh)
    fresh.rollback("base")
    apply(fresh, requests, "memit")
    (whole,) = low_rank(fresh)
    for name, factors in whole.factors.items():
        together = found.factors[name]
        assert relative_error(together.left @ together.right, factors.left @ factors.right) < 1e-3
    assert found.owners == whole.owners


def test_the_old_state_is_a_rollback_away_and_every_state_comes_back(fresh):  # noqa: F811
    mixture(fresh)
    head, bits = fresh.store.head, [f.tensors() for f in low_rank(fresh)]
    fresh.consolidate()
    after = fresh.store.head
    fresh.rollback("head~1")
    assert fresh.edited.fingerprint == head.fingerprint
    for found, expected in zip((f.tensors() for f in low_rank(fresh)), bits, strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert is_exact(fresh)
    fresh.rollback(after.id)
    path, revisions = fresh.store.path, list(fresh.store.revisions())
    assert all(made.is_same for made in rebuild(fresh, revisions))
    fresh.close()
    assert verify(path) == []
    with open_session(path) as again:
        assert again.edited.fingerprint == after.fingerprint and is_exact(again)


def test_what_was_superseded_or_reverted_leaves_no_columns(fresh):  # noqa: F811
    requests = corrections(0, 6)
    apply(fresh, requests[:3], "memit")
    apply(fresh, requests[3:], "memit")
    other = next(c for c in CAPITALS[9:] if c != requests[0].target_new)
    changed = requests[0].model_copy(update={"target_new": other})
    apply(fresh, [changed], "memit")
    fresh.revert(requests[4].id)
    done = fresh.consolidate()
    kept = [requests[1], requests[2], requests[3], requests[5], changed]
    assert set(done.requests) == {r.id for r in kept}
    assert done.columns == (6, 5)
    assert right(fresh, kept) == [True] * 5 and is_exact(fresh)


def test_a_request_out_of_the_joint_patch_goes_alone(fresh):  # noqa: F811
    requests = mixture(fresh)
    fresh.consolidate()
    with pytest.raises(RevertError, match="then consolidate"):
        fresh.revert(requests[3].id, resolve=True)
    done = fresh.revert(requests[3].id)
    assert done.rows == {"low-rank": 1}
    kept = [r for r in requests if r is not requests[3]]
    again = fresh.consolidate("memit", {"memit": {"moment_weight": 0.5}})  # one patch and nothing
    assert requests[3].id not in again.requests
    assert right(fresh, kept) == [True] * 13


def test_editing_goes_on_behind_it(fresh):  # noqa: F811
    requests = mixture(fresh)
    fresh.consolidate()
    later = corrections(14, 18)
    apply(fresh, later[:2], "memit")
    apply(fresh, later[2:], "tpatcher", batch_size=1)
    assert right(fresh, later) == [True] * 4
    assert is_exact(fresh)
    assert sum(right(fresh, requests)) >= 13


def state_of(session: Session) -> tuple[str, str, int]:
    return session.store.head_id, session.edited.fingerprint, session.store.length


def test_one_patch_is_nothing_to_consolidate(fresh):  # noqa: F811
    with pytest.raises(CannotConsolidate, match="nothing to consolidate: 0 patches"):
        fresh.consolidate()
    apply(fresh, corrections(0, 3), "memit")
    before = state_of(fresh)
    with pytest.raises(CannotConsolidate, match="1 patches"):
        fresh.consolidate()
    assert state_of(fresh) == before and is_exact(fresh)


def test_what_does_not_fit_one_batch_changes_nothing(fresh):  # noqa: F811
    requests = mixture(fresh)
    before = state_of(fresh)
    with pytest.raises(CannotConsolidate, match="cannot be written in one batch by memit") as said:
        fresh.consolidate("memit", {"memit": {"drift_max": 1e-6}})
    assert "away from the base" in str(said.value) and "Nothing was changed" in str(said.value)
    assert state_of(fresh) == before and is_exact(fresh)
    assert right(fresh, requests) == [True] * 14


def test_what_would_break_another_correction_changes_nothing(fresh):  # noqa: F811
    """Neurons about the same subjects listen to queries that much longer values move."""
    requests = corrections(0, 6)
    apply(fresh, requests[:3], "memit")
    apply(fresh, requests[3:], "memit")
    seats = [
        Request.from_json(
            {
                "prompt": known(FIRST + number, 2),
                "target_new": CAPITALS[number],
                "subject": COUNTRIES[FIRST + number],
                "relation": "seat",
            }
        )
        for number in range(6)
    ]
    steps = apply(fresh, seats, "tpatcher", batch_size=1)
    assert {o.outcome for step in steps for o in step.outcomes} == {"applied"}
    before, outcomes = state_of(fresh), fresh.run_state.ledger.outcomes()
    far = {"clamp_norm_factor": 40.0, "step": 3.0, "stop_loss": 1e-9, "weight_decay": 0.0}
    with pytest.raises(CannotConsolidate, match="corrections in force would break") as said:
        fresh.consolidate("memit", {"memit": {**far, "drift_max": 1e6}})
    assert "Nothing was changed" in str(said.value) and "→" in str(said.value)
    assert state_of(fresh) == before
    assert fresh.run_state.ledger.outcomes() == outcomes and is_exact(fresh)


def test_its_editor_is_that_of_most_edits_unless_one_is_named(fresh):  # noqa: F811
    mixture(fresh)
    done = fresh.consolidate("emmet", {"emmet": TABLES["emmet"]})
    assert done.editor == "emmet"
    assert fresh.store.head.body["settings"]["chain"] == ["emmet"]
    assert fresh.store.head.body["consolidated"] == list(done.replaced)


# -- what makes matrix edits last


def test_with_past_keys_the_system_has_those_of_earlier_batches(fresh):  # noqa: F811
    table = {"memit": {"past": True}}
    apply(fresh, corrections(0, 4), "memit", editors=table)
    assert len(fresh.edited.weight(0).keys) == 4
    apply(fresh, corrections(4, 8), "memit", editors=table)
    held = low_rank(fresh)[1]
    keys = fresh.edited.weight(0).keys[:4].double()
    fresh.rollback("head~1")
    apply(fresh, corrections(4, 8), "memit")
    free = low_rank(fresh)[1]

    def spill(part):  # what the second batch gives at the first one's keys
        (factors,) = part.factors.values()
        return float((keys @ factors.left.double() @ factors.right.double()).norm())

    assert 0 < spill(held) < 0.5 * spill(free)
    assert Memit(MemitConfig(past=True)).config.past
