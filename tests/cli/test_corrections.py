"""Finding corrections, showing one with its past, and correcting without a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cedit, request, write_lines


@pytest.fixture
def edited(cedit: Cedit, store: Path, tmp_path: Path) -> Path:
    """The store after three corrections, the last of which is rolled back."""
    stream = write_lines(tmp_path / "three.jsonl", [request(n) for n in range(3)])
    assert cedit("apply", stream).code == 0
    assert cedit("rollback", "@2").code == 0
    return store


def test_list_has_the_corrections_in_force(cedit: Cedit, edited: Path) -> None:
    records = cedit("list", "--json").records
    assert [r["prompt"] for r in records] == [request(n)["prompt"] for n in range(2)]
    assert {r["in_force"] for r in records} == {True}
    assert [r["prompt"] for r in cedit("list", "@1", "--json").records] == [request(0)["prompt"]]
    assert "→ Oslo" in cedit("list").out


def test_find_marks_a_correction_that_was_rolled_back(cedit: Cedit, edited: Path) -> None:
    (found,) = cedit("find", "COUNTRY 2", "--json").records
    assert (found["target_new"], found["in_force"]) == ("Rome", False)
    assert "gone" in cedit("find", "rome").out
    assert "No correction" in cedit("find", "nowhere").out


def test_show_takes_a_correction_by_the_start_of_its_id(cedit: Cedit, edited: Path) -> None:
    (found,) = cedit("find", "country 1", "--json").records
    record = cedit("show", found["id"][:8], "--json").last
    assert record["request"]["prompt"] == request(1)["prompt"]
    assert [step["outcome"] for step in record["steps"]] == ["applied"]
    assert "in force     yes" in cedit("show", found["id"][:8]).out


def test_log_is_filtered(cedit: Cedit, edited: Path) -> None:
    assert [r["seq"] for r in cedit("log", "--grep", "country 1", "--json").records] == [2]
    assert cedit("log", "--failed", "--json").records == []
    assert cedit("log", "--since", "2999-01-01", "--json").records == []
    assert len(cedit("log", "--since", "2020-01-01", "--json").records) == 2


def test_fix_corrects_one_prompt(cedit: Cedit, store: Path) -> None:
    ran = cedit("fix", "The tallest hill here is", "Ararat", "--json")
    assert ran.code == 0
    record = ran.last
    assert record["outcome"] == "applied"
    assert record["before"] != record["after"]
    assert record["after"].startswith("Ararat")
    assert cedit("list", "--json").last["id"] == record["id"]


def test_a_dry_run_reads_and_edits_nothing(cedit: Cedit, edited: Path, tmp_path: Path) -> None:
    before = cedit("status", "--json").last
    lines = [request(0), request(1, "Zug"), request(2), {"prompt": "x", "target": "y"}]
    ran = cedit("apply", write_lines(tmp_path / "more.jsonl", lines), "--dry-run", "--json")
    record = ran.last
    names = ("read", "requests", "in_force", "quarantined")
    assert [record[name] for name in names] == [4, 3, 1, 1]
    assert cedit("status", "--json").last == before


def test_a_run_says_that_a_correction_was_taken_back_before(
    cedit: Cedit, edited: Path, tmp_path: Path
) -> None:
    again = write_lines(tmp_path / "again.jsonl", [request(2)])
    ran = cedit("apply", again)
    assert "1 correction of these had been taken back before." in ran.out


def test_a_setting_is_given_for_a_run(cedit: Cedit, store: Path, tmp_path: Path) -> None:
    stream = write_lines(tmp_path / "one.jsonl", [request(0)])
    assert cedit("apply", stream, "--set", "tpatcher.margin=0.75").code == 0
    settings = cedit("show", "head", "--json").last["settings"]
    assert settings["editors"]["tpatcher"]["margin"] == 0.75
    ran = cedit("apply", stream, "--set", "margin=1")
    assert ran.code == 2 and "EDITOR.KEY=VALUE" in ran.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("aply",), "Did you mean apply?"),
        (("apply", "x.jsonl", "--editor", "tpacher"), "Did you mean tpatcher?"),
        (("show", "7"), "entry 7 of the journal is @7"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(
    cedit: Cedit, store: Path, arguments: tuple[str, ...], told: str
) -> None:
    ran = cedit(*arguments)
    assert ran.code == 2 and told in ran.err


def test_a_tag_moves_only_when_told(cedit: Cedit, edited: Path) -> None:
    assert cedit("tag", "v1", "@1").code == 0
    assert cedit("tag", "v1", "@1").code == 0
    ran = cedit("tag", "v1")
    assert ran.code == 2 and "v1 is @1" in ran.err
    assert cedit("tag", "v1", "--force").code == 0


def test_ask_takes_several_prompts_and_compares(cedit: Cedit, edited: Path) -> None:
    prompts = [request(n)["prompt"] for n in range(2)]
    records = cedit("ask", *prompts, "--compare", "base", "--tokens", 5, "--json").records
    assert [r["answer"] for r in records] == ["Lyon", "Oslo"]
    assert [r["compared"]["seq"] for r in records] == [0, 0]
    assert all(r["compared"]["answer"] != r["answer"] for r in records)
