"""Runs that have nothing to do: no revision, and no measurement of what was measured before."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import continual
from continual.session import Session
from continual.streams import open_stream
from tests.cli.conftest import Cedit, request, write_lines


def applied(store: Path, records: list[object]) -> Path:
    """The store with some corrections in force."""
    with continual.open(store) as session:
        session.apply(records)  # type: ignore[arg-type]
        assert session.in_force == len(records)
    return store


def run_again(session: Session, path: Path) -> float:
    """Apply a stream that changes nothing, and return the seconds that it took."""
    head, start = session.head, time.perf_counter()
    assert list(session.steps(open_stream(str(path)), session.settings())) == []
    session.settle()
    seconds = time.perf_counter() - start
    assert session.head == head
    assert "run_state" not in vars(session)  # no probe was read
    return seconds


@pytest.mark.parametrize("content", ["empty", "in force"])
def test_an_empty_run_makes_no_revision_and_reads_no_probe(
    store: Path, tmp_path: Path, content: str
) -> None:
    records = [request(0), request(1)]
    stream = write_lines(tmp_path / "again.jsonl", [] if content == "empty" else records)
    with continual.open(applied(store, records)) as session:
        assert run_again(session, stream) < 1.0


def test_what_was_answered_rightly_is_asked_again_only_when_the_model_has_changed(
    store: Path, tmp_path: Path
) -> None:
    known = {name: request(0)[name] for name in ("prompt", "target_new")}
    stream = write_lines(tmp_path / "known.jsonl", [known])
    with continual.open(applied(store, [request(0)])) as session:
        (step,) = session.apply([known])
        assert step.outcomes[0].outcome == "skipped"
    with continual.open(store) as session:
        run_again(session, stream)
        session.apply([request(1)])
        assert len(list(session.steps(open_stream(str(stream)), session.settings()))) == 1


def test_a_new_record_behind_known_ones_is_applied_and_force_takes_all(
    store: Path, tmp_path: Path
) -> None:
    records = [request(0), request(1), request(2)]
    stream = write_lines(tmp_path / "longer.jsonl", records)
    with continual.open(applied(store, records[:2])) as session:
        (step,) = session.steps(open_stream(str(stream)), session.settings())
        assert [o.outcome for o in step.outcomes].count("applied") == 1
    again = write_lines(tmp_path / "again.jsonl", records)
    with continual.open(store) as session:
        steps = list(session.steps(open_stream(str(again)), session.settings(force=True)))
        assert len(steps) == 3


def test_the_command_says_why_nothing_was_done(cedit: Cedit, store: Path, tmp_path: Path) -> None:
    applied(store, [request(0)])
    before = cedit("log", "--all", "--json").records
    ran = cedit("apply", write_lines(tmp_path / "same.jsonl", [request(0)]))
    assert (ran.code, "its 1 record is in force already" in ran.out) == (0, True)
    ran = cedit("apply", write_lines(tmp_path / "none.jsonl", []))
    assert (ran.code, "The stream is empty" in ran.out) == (0, True)
    assert cedit("log", "--all", "--json").records == before


def test_a_fix_of_a_right_answer_says_that_nothing_was_changed(cedit: Cedit, store: Path) -> None:
    applied(store, [request(0)])
    ran = cedit("fix", request(0)["prompt"], request(0)["target_new"])
    assert "nothing was changed" in ran.out
    assert "To take it back" not in ran.out
