"""`cedit revert`: one correction goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from store import Store
from tests.cli.conftest import ROOT, Cedit, request

KEYS = {
    *("type", "revision", "seq", "request", "prompt", "target_new", "relation"),
    *("removed", "resolved"),
    *("before", "after", "broke", "recovered", "fingerprint"),
}


@pytest.fixture
def edited(cedit: Cedit, store: Path, stream: Path) -> Path:
    """The store after three corrections."""
    assert cedit("apply", stream).code == 0
    return store


def id_of(cedit: Cedit, name: str) -> str:
    """The id of a revision's request."""
    return str(cedit("show", name, "--json").last["outcomes"][0]["id"])


def test_a_reverted_correction_is_gone_and_the_others_are_there(cedit: Cedit, edited: Path) -> None:
    identity = id_of(cedit, "@2")
    ran = cedit("revert", identity[:8], "--json")
    assert ran.code == 0
    assert ran.last.keys() == KEYS
    assert (ran.last["request"], ran.last["seq"]) == (identity, 4)
    assert ran.last["removed"]["neuron"] >= 1
    assert not cedit("ask", request(1)["prompt"]).out.startswith("Oslo")
    assert cedit("ask", request(2)["prompt"]).out.startswith("Rome")
    assert cedit("status", "--json").last["requests_active"] == 2


def test_it_reads_well_and_can_be_looked_at(cedit: Cedit, edited: Path) -> None:
    identity = id_of(cedit, "@2")
    assert identity in cedit("show", "@2").out
    said = cedit("revert", identity).out
    assert "Reverted: The capital of country 1 is → Oslo" in said
    assert "removed      neuron" in said
    assert "revert: The capital of country 1 is" in cedit("log").out
    assert "without      The capital of country 1 is → Oslo" in cedit("show", "head").out
    assert "- The capital of country 1 is → Oslo" in cedit("diff", "@3").out


def test_the_history_is_sound_and_leads_back(cedit: Cedit, edited: Path) -> None:
    before = cedit("status", "--json").last
    cedit("revert", id_of(cedit, "@1"))
    assert cedit("verify", "--json").records == [{"ok": True, "problems": []}]
    assert cedit("replay").code == 0
    assert cedit("rollback", "head~1", "--json").last["fingerprint"] == before["fingerprint"]


@pytest.mark.parametrize("name", ["nothere", "", "ab", "../..", "\x1b[31m", "💥💥💥💥"])
def test_a_name_of_no_request_is_refused(cedit: Cedit, edited: Path, name: str) -> None:
    ran = cedit("revert", "--", name)
    assert ran.code == 2
    assert "\x1b" not in ran.err and "Traceback" not in ran.err
    with Store.open(edited) as opened:
        assert opened.length == 4


def test_reverting_twice_says_so(cedit: Cedit, edited: Path) -> None:
    identity = id_of(cedit, "@1")
    assert cedit("revert", identity).code == 0
    ran = cedit("revert", identity)
    assert ran.code == 2
    assert "was reverted" in ran.err


def test_a_shell_is_offered_the_ids(cedit: Cedit, edited: Path) -> None:
    identity = id_of(cedit, "head")
    line = f"cedit revert {identity[:6]}"
    child = subprocess.run(
        [sys.executable, "-m", "cli.main"],
        env={
            **os.environ,
            "COMP_WORDS": line,
            "COMP_CWORD": "2",
            "_CEDIT_COMPLETE": "bash_complete",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.split() == [f"plain,{identity}"]
