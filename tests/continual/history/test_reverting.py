"""Reverting: one request goes, and the model is as if it had never been."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from continual.history.corrections import UnknownRequest, standing_request
from continual.history.inspection import difference, entry, retained_at
from continual.history.replaying import rebuild, verify
from continual.history.reverting import RevertError, with_owners
from continual.requests import Request
from continual.session import Session, open_session
from store import Revision
from store.errors import StoreFull
from tests.continual.conftest import answers, reopened
from tests.continual.test_mixed_history import (
    apply,
    apply_mixture,
    corrections,
    folder,  # noqa: F401
    fresh,  # noqa: F401
    is_exact,
)
from tests.tiny_language import CAPITALS, correction


def requests_of(numbers: range) -> list[Request]:
    return [Request.from_json(correction(n)) for n in numbers]


def applied(session: Session, requests: list[Request]) -> list[Revision]:
    return [s.revision for s in session.apply_requests(requests, session.settings())]


def neurons(session: Session) -> tuple[torch.Tensor, ...]:
    bank = session.site.bank
    return bank.keys.clone(), bank.bias.clone(), bank.values.clone()


def is_same(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_its_neurons_go_and_all_others_stay_as_they_are(knowing):
    requests = requests_of(range(20, 26))
    revisions = applied(knowing, requests)
    owners = [o for r in revisions for part in knowing.patches(r.patch) for o in part.owners]
    before = neurons(knowing)
    done = knowing.revert(requests[2].id)
    kept = [i for i, owner in enumerate(owners) if owner != requests[2].id]
    assert done.rows == {"neuron": len(owners) - len(kept)} and len(owners) > len(kept)
    assert is_same(neurons(knowing), tuple(part[kept] for part in before))
    right = answers(knowing, [correction(n) for n in range(20, 26)])
    assert right == [True, True, False, True, True, True]


def test_the_last_one_reverted_gives_the_state_before_it(knowing):
    requests = requests_of(range(20, 23))
    revisions = applied(knowing, requests)
    done = knowing.revert(requests[2].id)
    assert done.revision.fingerprint == revisions[1].fingerprint
    assert done.revision.parent == revisions[2].id


def test_the_state_is_that_of_a_history_that_never_had_it(made, knowing_model):
    requests = requests_of(range(20, 26))
    one, other = made(knowing_model, "one"), made(knowing_model, "other")
    applied(one, requests)
    one.revert(requests[5].id)
    one.revert(requests[4].id)
    applied(other, requests[:4])
    assert one.edited.fingerprint == other.edited.fingerprint
    later = requests_of(range(30, 33))
    applied(one, later)
    assert answers(one, [correction(n) for n in (20, 23, 30, 32)]) == [True] * 4


def test_every_revision_still_comes_back_bit_for_bit(knowing):
    requests = requests_of(range(20, 26))
    applied(knowing, requests)
    knowing.revert(requests[1].id)
    applied(knowing, requests_of(range(30, 32)))
    knowing.revert(requests[4].id)
    applied(knowing, [requests[1]])  # applied again
    knowing.revert(requests[1].id)  # and reverted again
    path = knowing.store.path
    revisions = list(knowing.store.revisions())
    for revision in (revisions[3], revisions[-1], revisions[7], revisions[0], revisions[9]):
        knowing.rollback(revision.id)
        assert knowing.edited.fingerprint == revision.fingerprint
    assert all(made.is_same for made in rebuild(knowing, knowing.store.revisions()))
    knowing.close()
    assert verify(path) == []


def test_a_reverted_request_can_be_applied_again(knowing):
    requests = requests_of(range(20, 23))
    applied(knowing, requests)
    knowing.revert(requests[0].id)
    assert requests[0].id not in knowing.run_state.retention
    (again,) = applied(knowing, [requests[0]])
    assert again.body["requests"][0]["outcome"] == "applied"
    assert answers(knowing, [correction(20)]) == [True]
    assert list(knowing.run_state.retention.requests)[-1] == requests[0].id
    assert is_exact(knowing)


def test_what_it_had_superseded_counts_again(knowing):
    first = Request.from_json(correction(22))
    second = Request.from_json(correction(22, CAPITALS[1]))
    applied(knowing, [first, second])
    assert first.id not in knowing.run_state.retention
    knowing.revert(second.id)
    assert list(knowing.run_state.retention.requests) == [first.id]
    assert answers(knowing, [correction(22)]) == [True]
    assert knowing.run_state.retention.attempts.total == 2


def test_a_run_that_is_resumed_behind_a_revert_comes_to_the_same_bits(made, knowing_model):
    requests = requests_of(range(20, 26))
    later = requests_of(range(30, 34))
    one, other = made(knowing_model, "one"), made(knowing_model, "other")
    for session in (one, other):
        applied(session, requests)
        session.revert(requests[2].id)
    applied(one, later)
    other.close()
    for request in later:
        with open_session(other.store.path) as resumed:
            applied(resumed, [request])
            fingerprint = resumed.edited.fingerprint
    assert fingerprint == one.edited.fingerprint


def test_the_recheck_is_on_record_and_says_what_it_cost(knowing):
    requests = requests_of(range(20, 24))
    applied(knowing, requests)
    done = knowing.revert(requests[1].id)
    assert done.before["ER_incl"] == done.after["ER_incl"] == 1.0
    assert knowing.store.ledger(done.revision.seq)["rates"] == done.after
    assert is_exact(knowing)


def test_the_history_shows_it(knowing):
    requests = requests_of(range(20, 23))
    revisions = applied(knowing, requests)
    done = knowing.revert(requests[0].id)
    store = knowing.store
    shown = entry(store, done.revision)
    assert shown["operation"] == "revert"
    assert [r["id"] for r in shown["reverted"]] == [requests[0].id]
    found = difference(store, revisions[-1], done.revision)
    assert [r["id"] for r in found["gone"]] == [requests[0].id]
    assert found["added"] == [] and found["patch_bytes_added"] == 0
    assert found["patch_bytes_gone"] == revisions[0].patch.length
    assert list(retained_at(store, store.head).requests) == [r.id for r in requests[1:]]
    assert list(retained_at(store, revisions[-1]).requests) == [r.id for r in requests]


def test_what_is_not_there_cannot_be_reverted(knowing):
    requests = requests_of(range(20, 22))
    applied(knowing, requests)
    knowing.revert(requests[0].id[:8])
    for name in (requests[0].id, "ab", "", "zzzzzzzz", "../../etc", "f" * 200, requests[1].id[:2]):
        with pytest.raises(UnknownRequest) as caught:
            knowing.revert(name)
        assert caught.value.exit_code == 2
    assert knowing.store.length == 4
    assert knowing.edited.fingerprint == knowing.store.head.fingerprint


def test_a_prefix_of_several_names_them(knowing):
    revision = applied(knowing, requests_of(range(20, 21)))[0]
    body = {"requests": [{"id": f"abcd{n}", "outcome": "applied"} for n in range(2)]}
    twins = Revision("x", 1, "p", "p", "edit", None, "f", body)
    with pytest.raises(UnknownRequest, match="abcd0, abcd1"):
        standing_request([revision, twins], "abcd")


# -- batches of weight edits


def test_its_column_goes_and_the_others_stay(fresh):  # noqa: F811
    requests = corrections(0, 4)
    (step,) = apply(fresh, requests, "memit")
    assert {o.outcome for o in step.outcomes} == {"applied"}
    (part,) = fresh.patches(step.revision.patch)
    done = fresh.revert(requests[1].id)
    (less,) = fresh.patches(fresh.store.layers("head")[1].patch)
    kept = [0, 2, 3]
    for block in part.factors:
        assert torch.equal(less.factors[block].left, part.factors[block].left[:, kept])
        assert torch.equal(less.factors[block].right, part.factors[block].right[kept])
    assert done.rows == {"low-rank": 1}
    assert done.revision.body["weight_blocks"] == list(part.blocks.values())
    assert is_exact(fresh)


def test_its_batch_is_solved_again_as_if_it_had_not_been_there(fresh):  # noqa: F811
    requests = corrections(0, 4)
    apply(fresh, [requests[0], *requests[2:]], "memit")
    wanted = fresh.edited.fingerprint
    fresh.rollback("base")
    apply(fresh, requests, "memit")
    later = corrections(6, 8)
    apply(fresh, later, "tpatcher", batch_size=1)
    done = fresh.revert(requests[1].id, resolve=True)
    assert {o.id for o in done.resolved} == {r.id for r in requests} - {requests[1].id}
    fresh.edited.take_off(2)
    assert fresh.edited.fingerprint == wanted
    fresh.stand_at("head")
    assert is_exact(fresh)
    again = reopened(fresh)
    assert again.edited.fingerprint == done.revision.fingerprint
    again.close()
    assert verify(fresh.store.path) == []


def test_a_batch_solved_again_does_not_bring_back_what_was_superseded(fresh):  # noqa: F811
    requests = corrections(0, 4)
    apply(fresh, requests, "memit")
    changed = requests[0].model_copy(update={"target_new": requests[3].target_new})
    apply(fresh, [changed], "tpatcher")
    done = fresh.revert(requests[1].id, resolve=True)
    assert {o.id for o in done.resolved} == {requests[2].id, requests[3].id}
    kept = fresh.run_state.retention.requests
    assert set(kept) == {changed.id, requests[2].id, requests[3].id}
    assert is_exact(fresh)


def test_a_full_disk_is_said_and_not_what_follows_from_it(knowing, monkeypatch):
    requests = requests_of(range(20, 22))
    applied(knowing, requests)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 10}))
    with pytest.raises(StoreFull, match="10 are free"):
        knowing.revert(requests[0].id)


def test_out_of_a_whole_mixture_each_can_be_taken(fresh):  # noqa: F811
    apply_mixture(fresh)
    requests = corrections(0, 22)
    for number in (1, 5, 12, 15, 20):
        done = fresh.revert(requests[number].id)
        assert fresh.edited.fingerprint == done.revision.fingerprint
        assert is_exact(fresh), number
    assert len(fresh.run_state.retention.requests) == 17
    path = fresh.store.path
    fresh.close()
    with open_session(path) as again:
        assert is_exact(again)
        assert again.edited.fingerprint == done.revision.fingerprint
    assert verify(path) == []


def test_a_revert_that_breaks_off_leaves_all_as_it_was(fresh, monkeypatch):  # noqa: F811
    requests = corrections(0, 3)
    apply(fresh, requests, "memit")
    before = fresh.store.head

    def fail(*_: object) -> None:
        raise RuntimeError("not now")

    with monkeypatch.context() as patched:
        patched.setattr("continual.history.reverting.rehearse", fail)
        with pytest.raises(RuntimeError, match="not now"):
            fresh.revert(requests[0].id, resolve=True)
    assert fresh.store.head.id == before.id
    assert fresh.edited.fingerprint == before.fingerprint


# -- patches of older stores


def require_derived_owners(session: Session, revision: Revision) -> None:
    (part,) = session.patches(revision.patch)
    silent = replace(part, owners=())
    assert with_owners(silent, revision, [silent]).owners == part.owners
    assert len(set(part.owners)) == 3
    cut = replace(revision, body={"requests": revision.body["requests"][:2]})
    with pytest.raises(RevertError, match="older version"):
        with_owners(silent, cut, [silent])


def test_older_neurons_are_told_their_owners_by_what_became_of_the_requests(knowing):
    requests = requests_of(range(20, 23))
    (step,) = knowing.apply_requests(requests, knowing.settings(batch_size=3))
    require_derived_owners(knowing, step.revision)


def test_older_columns_are_told_their_owners_by_what_became_of_the_requests(fresh):  # noqa: F811
    (step,) = apply(fresh, corrections(0, 3), "memit")
    require_derived_owners(fresh, step.revision)
