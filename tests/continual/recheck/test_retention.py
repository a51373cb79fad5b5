"""The retention set: which requests count, by hand."""

from __future__ import annotations

import json

from continual.recheck.metrics import Count
from continual.recheck.retention import Outcome, Retention, count_outcomes, outcomes_of
from continual.requests import Request


def request(prompt: str, target: str, **more: str) -> Request:
    return Request(prompt=prompt, target_new=target, **more)


A = request("the capital of X is", "a", subject="X", relation="capital")
B = request("the capital of X is", "b", subject="X", relation="capital")
C = request("X has as its capital", "c", subject="X", relation="capital")
D = request("the capital of Y is", "a", subject="Y", relation="capital")
BARE = request("The  CAPITAL of x is", "e")  # the same prompt as A's, and no subject


def taken(*entries: tuple[Request, str] | tuple[Request, str, tuple[Request, ...]]) -> Retention:
    """A retention set behind (request, outcome, what it supersedes)."""
    kept = Retention()
    for known, outcome, *rest in entries:
        superseded = tuple(r.id for r in rest[0]) if rest else ()
        kept.take(Outcome(known.id, outcome, supersedes=superseded), known)
    return kept


def counting(kept: Retention) -> list[Request]:
    return [retained.request for retained in kept.requests.values()]


def test_applied_and_failed_requests_count_and_others_do_not():
    kept = taken((A, "applied"), (D, "failed"), (C, "skipped"), (B, "repeated"))
    assert counting(kept) == [A, D]
    assert kept.attempts == Count(1, 2)
    assert kept.applied == 1
    assert A.id in kept and C.id not in kept


def test_competitors_share_a_fact_or_a_prompt_and_differ_in_their_target():
    kept = taken((A, "applied"), (D, "applied"))
    assert kept.competitors(B) == [A.id]
    assert kept.competitors(C) == [A.id]
    assert kept.competitors(BARE) == [A.id]
    assert kept.competitors(A) == []
    agreeing = request("another way to ask", "a", subject="x", relation="CAPITAL")
    assert kept.competitors(agreeing) == []
    assert kept.competitors(request("z", "b", subject="X", relation="king")) == []


def test_there_and_back_again():
    kept = taken((A, "applied"), (B, "applied", (A,)), (A, "applied", (B,)))
    assert counting(kept) == [A]
    assert kept.attempts == Count(3, 3)
    assert kept.competitors(B) == [A.id]
    assert kept.competitors(C) == [A.id]
    kept.take(Outcome(C.id, "applied", supersedes=(A.id,)), C)
    assert counting(kept) == [C]
    assert kept.competitors(A) == [C.id]


def test_a_skipped_request_supersedes_and_does_not_count_itself():
    kept = taken((A, "applied"), (B, "skipped", (A,)))
    assert counting(kept) == []
    assert kept.competitors(A) == []


def test_a_request_that_failed_and_supersedes_counts_as_wrong():
    kept = taken((A, "applied"), (B, "failed", (A,)))
    assert counting(kept) == [B]
    assert (kept.attempts, kept.applied) == (Count(1, 2), 0)


def test_a_request_tried_again_counts_as_one_request_and_two_attempts():
    kept = taken((A, "failed"), (D, "applied"), (A, "applied"))
    assert counting(kept) == [D, A]
    assert (kept.attempts, kept.applied) == (Count(2, 3), 2)


def test_a_repair_is_no_attempt_and_keeps_what_was_expected_before():
    kept = Retention()
    kept.take(Outcome(A.id, "applied", expected=((1, 2),)), A)
    kept.take(Outcome(D.id, "applied"), D)
    kept.take(Outcome(A.id, "applied", repair=True), A)
    assert counting(kept) == [D, A]
    assert kept.attempts == Count(2, 2)
    assert kept.requests[A.id].expected == ((1, 2),)
    kept.take(Outcome(B.id, "applied", supersedes=(A.id,)), B)
    assert counting(kept) == [D, B]
    assert kept.competitors(A) == [B.id]


def test_a_request_that_comes_back_after_being_superseded_expects_anew():
    kept = Retention()
    kept.take(Outcome(A.id, "applied", expected=((1,),)), A)
    kept.take(Outcome(B.id, "applied", supersedes=(A.id,)), B)
    kept.take(Outcome(A.id, "applied", supersedes=(B.id,), expected=((2,),)), A)
    assert kept.requests[A.id].expected == ((2,),)


def test_an_outcome_comes_back_from_json_as_it_was():
    outcome = Outcome(
        "i",
        "applied",
        editor="tpatcher",
        attempt=2,
        supersedes=("j", "k"),
        expected=((1, 2), (3,)),
        repair=True,
        notes={"neurons": 3},
    )
    record = json.loads(json.dumps(outcome.to_json()))
    assert outcomes_of({"requests": [record]}) == [outcome]
    plain = Outcome("i", "skipped")
    assert plain.to_json() == {"id": "i", "outcome": "skipped"}
    assert outcomes_of({"requests": [plain.to_json()]}) == [plain]
    assert outcomes_of({}) == []


def test_outcomes_are_counted_as_the_reports_give_them():
    outcomes = [
        Outcome("a", "applied", supersedes=("x",)),
        Outcome("b", "failed"),
        Outcome("c", "skipped"),
        Outcome("d", "repeated"),
        Outcome("e", "superseded"),
        Outcome("f", "applied", repair=True),
        Outcome("g", "failed", repair=True),
    ]
    assert count_outcomes(outcomes) == {
        "attempted": 2,
        "applied": 1,
        "skipped": 2,
        "superseded": 2,
        "failed": 1,
    }
