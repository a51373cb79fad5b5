"""`cedit gc`: what nothing leads to goes, when it is said so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cedit


@pytest.fixture
def littered(cedit: Cedit, store: Path, stream: Path) -> Path:
    """The store after three corrections, with what an interrupted write has left."""
    assert cedit("apply", stream).code == 0
    (store / "patches" / ".tmp-01").write_bytes(b"0" * 2048)
    return store


def test_a_dry_run_says_what_would_go_and_leaves_it(cedit: Cedit, littered: Path) -> None:
    ran = cedit("gc", "--dry-run", "--json")
    (file, summary) = ran.records
    why = "left from a write that broke off"
    assert file == {"type": "garbage", "path": "patches/.tmp-01", "bytes": 2048, "why": why}
    assert summary == {"type": "summary", "files": 1, "bytes": 2048, "removed": False}
    assert (littered / "patches" / ".tmp-01").exists()
    assert "1 file, 2.0 KiB, could go." in cedit("gc", "--dry-run").out


def test_it_goes_when_that_is_confirmed(cedit: Cedit, littered: Path) -> None:
    assert cedit("gc", "--yes", "--json").last["removed"] is True
    assert not (littered / "patches" / ".tmp-01").exists()
    assert cedit("verify").code == 0
    assert cedit("gc").out == "Nothing to remove.\n"
    assert cedit("gc", "--json").records == [
        {"type": "summary", "files": 0, "bytes": 0, "removed": False}
    ]


def test_where_nobody_can_be_asked_nothing_goes(cedit: Cedit, littered: Path) -> None:
    ran = cedit("gc")
    assert ran.code == 2
    assert "--dry-run" in ran.err
    assert (littered / "patches" / ".tmp-01").exists()


@pytest.mark.parametrize(("answer", "code"), [(True, 0), (False, 130)])
def test_on_a_terminal_it_asks(
    cedit: Cedit, littered: Path, monkeypatch: pytest.MonkeyPatch, answer: bool, code: int
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "y" if answer else "n")
    assert cedit("gc").code == code
    assert (littered / "patches" / ".tmp-01").exists() is not answer


def test_it_waits_for_no_writer(cedit: Cedit, littered: Path) -> None:
    from store.lock import WriterLock

    lock = WriterLock.acquire(littered / "lock")
    assert cedit("gc", "--yes").code == 11
    lock.release()


def test_a_dry_run_looks_at_what_is_being_written_to_and_leaves_out_what_is_new(
    cedit: Cedit, littered: Path
) -> None:
    from store.lock import WriterLock

    lock = WriterLock.acquire(littered / "lock")
    assert cedit("gc", "--dry-run", "--json").last["files"] == 0
    os.utime(littered / "patches" / ".tmp-01", (0, 0))
    assert cedit("gc", "--dry-run", "--json").last["files"] == 1
    lock.release()


def test_no_revision_is_lost_by_it(cedit: Cedit, littered: Path) -> None:
    assert cedit("rollback", "base").code == 0
    assert cedit("gc", "--cache", "--yes").code == 0
    assert cedit("rollback", "@3").code == 0
    assert cedit("replay", "--json").last["ok"] is True
