"""Looking at a history, and going back in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from store import Draft, Store
from tests.cli.conftest import Cedit, request, write_lines


@pytest.fixture
def edited(cedit: Cedit, store: Path, stream: Path) -> Path:
    """The store after three corrections."""
    assert cedit("apply", stream).code == 0
    return store


def test_status_says_where_the_store_stands(cedit: Cedit, edited: Path) -> None:
    record = cedit("status", "--json").last
    wanted = "head seq requests_active base task fingerprint SR GR ER TrainR TestR streams"
    assert record.keys() >= set(wanted.split())
    assert (record["seq"], record["requests_active"], record["quarantined"]) == (3, 3, 0)
    assert record["task"] == "causal"


def test_a_superseded_correction_is_no_longer_active(
    cedit: Cedit, edited: Path, tmp_path: Path
) -> None:
    cedit("apply", write_lines(tmp_path / "other.jsonl", [request(0, "Zug")]))
    assert cedit("status", "--json").last["requests_active"] == 3
    assert "supersedes" in cedit("show", "head").out


def test_log_lists_the_newest_first(cedit: Cedit, edited: Path) -> None:
    assert [r["seq"] for r in cedit("log", "--json").records] == [3, 2, 1, 0]
    assert [r["seq"] for r in cedit("log", "--limit", 2, "--json").records] == [3, 2]
    assert [r["seq"] for r in cedit("log", "@1..@2", "--json").records] == [2]
    newest = cedit("log").out.splitlines()[1]
    assert "The capital of country 2 is" in newest and newest.endswith("→ Rome")


def test_log_of_everything_has_what_was_rolled_back(cedit: Cedit, edited: Path) -> None:
    cedit("rollback", "@1")
    assert [r["seq"] for r in cedit("log", "--json").records] == [1, 0]
    entries = cedit("log", "--all", "--json").records
    assert [r["seq"] for r in entries] == [4, 3, 2, 1, 0]
    assert entries[0]["operation"] == "rollback"


def test_show_tells_what_became_of_each_request(cedit: Cedit, edited: Path) -> None:
    record = cedit("show", "@2", "--json").last
    (outcome,) = record["outcomes"]
    assert outcome["outcome"] == "applied"
    assert outcome["prompt"] == "The capital of country 1 is"
    assert outcome["target_new"] == "Oslo"
    assert record["patch_bytes"] > 0
    assert "The capital of country 1 is" in cedit("show", "@2").out


def test_diff_names_what_came_and_what_went(cedit: Cedit, edited: Path) -> None:
    forth = cedit("diff", "@1", "--json").last
    assert [r["target_new"] for r in forth["added"]] == ["Oslo", "Rome"]
    assert forth["gone"] == []
    back = cedit("diff", "head", "@1", "--json").last
    assert [r["target_new"] for r in back["gone"]] == ["Oslo", "Rome"]
    assert back["patch_bytes_gone"] == forth["patch_bytes_added"] > 0
    assert "+ The capital of country 1 is → Oslo" in cedit("diff", "@1").out


def test_the_edited_model_answers_and_base_is_still_there_to_ask(
    cedit: Cedit, edited: Path
) -> None:
    prompt = request(1)["prompt"]
    now = cedit("ask", prompt, "--json").last
    before = cedit("ask", prompt, "--at", "base", "--json").last
    assert now["answer"].startswith("Oslo")
    assert not before["answer"].startswith("Oslo")
    assert (now["seq"], before["seq"]) == (3, 0)


def test_rollback_brings_the_fingerprint_back_and_forward_again(cedit: Cedit, edited: Path) -> None:
    at_head = cedit("status", "--json").last
    back = cedit("rollback", "base", "--json").last
    assert back["fingerprint"] == at_head["base"] != at_head["fingerprint"]
    assert back["from"] == at_head["head"]
    forth = cedit("rollback", back["from"])
    assert "Nothing was erased" in forth.out
    assert cedit("status", "--json").last["fingerprint"] == at_head["fingerprint"]


def test_a_tag_names_a_revision(cedit: Cedit, edited: Path) -> None:
    assert cedit("tag", "first", "@1").code == 0
    assert [(r["tag"], r["seq"]) for r in cedit("tag", "--json").records] == [("first", 1)]
    assert cedit("show", "first", "--json").last["tags"] == ["first"]
    assert cedit("tag", "head").code == 1


def test_replay_builds_the_same_model(cedit: Cedit, edited: Path) -> None:
    ran = cedit("replay", "--json")
    assert ran.code == 0
    assert [r["ok"] for r in ran.records] == [True] * 4
    assert ran.last["revisions"] == 3
    assert [r["seq"] for r in cedit("replay", "@2..", "--json").records[:-1]] == [3]


def test_verify_finds_nothing_wrong_also_after_a_fork_in_the_history(
    cedit: Cedit, edited: Path, stream: Path
) -> None:
    cedit("rollback", "@1")
    cedit("apply", stream)
    ran = cedit("verify", "--json")
    assert (ran.code, ran.records) == (0, [{"ok": True, "problems": []}])


def test_diff_names_the_probes_that_turned(cedit: Cedit, store: Path) -> None:
    with Store.open(store, writable=True) as opened:
        base = opened.base
        assert opened.ledger(0)["turned"]["train:train:1"] is False
        opened.commit(Draft("edit", base.id, base.fingerprint, {}))
        opened.record_ledger(1, {"rates": {}, "turned": {"train:train:1": True}, "GR": [0, 0]})
    (probe,) = cedit("diff", "base", "--json").last["turned"]
    assert (probe["prompt"], probe["answer"]) == ("y and", "b")
    assert probe["right"] == {"from": False, "to": True}
    assert "! recovered (train)  y and → b" in cedit("diff", "base").out
    assert "! broke (train)  y and → b" in cedit("diff", "head", "base").out


def test_a_revision_that_comes_out_otherwise_is_found(cedit: Cedit, edited: Path) -> None:
    with Store.open(edited, writable=True) as opened:
        strange = opened.commit(Draft("edit", opened.head.id, "0" * 64, {}))
    replayed = cedit("replay", "--json")
    assert replayed.code == 20
    assert [r["ok"] for r in replayed.records] == [True, True, True, False, False]
    verified = cedit("verify", "--json")
    assert verified.code == 20
    assert [p["object"] for p in verified.last["problems"]] == [f"revision {strange.id[:12]}"]
    assert cedit("ask", "x").code == 20


def test_steps_are_made_again_and_compared(cedit: Cedit, edited: Path) -> None:
    ran = cedit("replay", "@1..", "--recompute", "--json")
    assert ran.code == 0
    assert [(r["seq"], r["ok"], r["difference"]) for r in ran.records[:-1]] == [
        (2, True, None),
        (3, True, None),
    ]
    assert ran.last["ok"] is True and ran.last["revisions"] == 2
    assert "3 steps made again, none with another patch." in cedit("replay", "--recompute").out


def test_a_patch_that_is_not_what_its_request_comes_to_is_found(cedit: Cedit, edited: Path) -> None:
    with Store.open(edited, writable=True) as opened:
        step = opened.revision("@3")
        opened.commit(Draft("edit", opened.revision("@2").id, step.fingerprint, step.body))
    ran = cedit("replay", "@2..", "--recompute")
    assert ran.code == 20
    assert "NOT: 1 parts instead of 0" in ran.out


def test_a_tag_can_be_taken_away(cedit: Cedit, edited: Path) -> None:
    cedit("tag", "first", "@1")
    ran = cedit("tag", "first", "--delete", "--json")
    assert (ran.last["tag"], ran.last["seq"], ran.last["deleted"]) == ("first", 1, True)
    assert cedit("tag", "--json").records == []
    assert cedit("show", "first").code == 2
    assert cedit("tag", "first", "--delete").code == 1
    assert cedit("tag", "--delete").code == 2
    assert cedit("tag", "head", "--delete").code == 1
    assert cedit("status").code == 0
