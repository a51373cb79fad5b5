"""`cedit trace` as people call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.commands.trace import SHADES, shaded
from tests.cli.conftest import Cedit

PROMPT, SUBJECT = "The capital of France is", "France"


def facts_file(folder: Path, count: int = 3) -> Path:
    """A file of facts."""
    path = folder / "facts.jsonl"
    records = [
        {"prompt": f"{name} is in", "subject": name, "target_new": "x"}
        for name in ("Lyon", "Oslo", "Rome")[:count]
    ]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def test_a_prompt_is_shown_token_by_token(cedit: Cedit, store: Path) -> None:
    ran = cedit("trace", PROMPT, "--subject", SUBJECT, "--draws", "2", "--severed")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].startswith("head (@0): The capital of France is → ")
    rows = [line for line in lines if set(line) & set(SHADES)]
    assert len(rows) == len(PROMPT)
    assert sum("*" in row.split()[0] for row in rows) >= len(SUBJECT)
    assert "state, FFN severed" in ran.out


def test_json_has_every_number(cedit: Cedit, store: Path) -> None:
    arguments = ("trace", PROMPT, "--subject", SUBJECT, "--draws", "2", "--answer", "Paris")
    ran = cedit(*arguments, "--json")
    record = ran.last
    assert record["type"] == "trace"
    assert record["outcome"] == "unknown"
    assert len(record["answer_tokens"]) == 6  # a blank and five letters
    assert [m["kind"] for m in record["maps"]] == ["state", "ffn", "attention"]
    assert [len(row) for row in record["maps"][0]["probability"]] == [2] * len(PROMPT)
    assert record["subject_places"] == list(range(15, 21))
    assert cedit(*arguments, "--json").records == ran.records


def test_two_revisions_stand_beside_each_other(cedit: Cedit, store: Path) -> None:
    cedit("fix", PROMPT, "Paris", "--subject", SUBJECT)
    arguments = ("--subject", SUBJECT, "--draws", "2", "--beside", "base")
    ran = cedit("trace", PROMPT, *arguments)
    assert ran.code == 0
    assert "base (@0)" in ran.out
    assert "head (@" in ran.out
    assert "exact, and slower" in ran.err
    seqs = [record["seq"] for record in cedit("trace", PROMPT, *arguments, "--json").records]
    assert len(set(seqs)) == 2


def test_a_file_is_averaged_drawn_and_written_as_a_page(
    cedit: Cedit, store: Path, tmp_path: Path
) -> None:
    plot, page = tmp_path / "set.svg", tmp_path / "set.html"
    arguments = ("--own-answers", "--min-effect", "-1", "--draws", "2")
    ran = cedit("trace", facts_file(tmp_path), *arguments, "--json", "--plot", plot, "--html", page)
    assert ran.code == 0
    assert [record["type"] for record in ran.records] == ["trace"] * 3 + ["traces"]
    assert ran.last["counts"] == {"traced": 3, "unknown": 0, "weak": 0}
    assert "last subject token" in ran.last["effects"]["state"]
    assert "</svg>" in plot.read_text("utf-8")
    text = page.read_text("utf-8")
    assert text.count('class="fact"') == 3
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    limited = cedit("trace", facts_file(tmp_path), *arguments, "--limit", "1", "--json")
    assert limited.last["counts"]["traced"] == 1


def test_a_page_escapes_what_comes_from_a_file(cedit: Cedit, store: Path, tmp_path: Path) -> None:
    path, page = tmp_path / "<i>.jsonl", tmp_path / "page.html"
    record = {"prompt": "<script>x</script> is", "subject": "<script>", "target_new": "x"}
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    cedit("trace", path, "--own-answers", "--min-effect", "-1", "--draws", "2", "--html", page)
    text = page.read_text("utf-8")
    assert "<script>" not in text
    assert "<i>" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("",), 2, "is no file"),
        (("", "--subject", "France"), 1, "prompt"),
        ((PROMPT,), 2, "--subject"),
        ((PROMPT, "--subject", "Spain"), 1, "does not contain its subject 'Spain'"),
        ((PROMPT, "--subject", "france"), 1, "in other letters"),
        ((PROMPT, "--subject", ""), 1, "without a subject"),
        ((PROMPT, "--subject", SUBJECT, "--answer", ""), 1, "answer"),
        ((PROMPT, "--subject", SUBJECT, "--limit", "3"), 2, "--limit"),
        ((PROMPT, "--subject", SUBJECT, "--at", "nowhere"), 2, "nowhere"),
        ((PROMPT, "--subject", SUBJECT, "--plot", "none/x.png"), 1, "no folder none"),
        ((PROMPT, "--subject", SUBJECT, "--plot", "x.odd"), 1, "no format"),
        ((PROMPT, "--subject", SUBJECT, "--html", "none/x.html"), 1, "no folder none"),
        (("x" * 400 + SUBJECT, "--subject", SUBJECT), 1, "more than the"),
    ],
)
def test_errors_name_the_remedy(
    cedit: Cedit, store: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    ran = cedit("trace", *arguments)
    assert (ran.code, message in ran.err) == (code, True), ran.err


def test_a_file_without_facts_says_why(cedit: Cedit, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    records = [
        {"prompt": "Where is Rome?", "target_new": "x"},
        {"prompt": "Where is Rome?", "subject": "Oslo", "target_new": "x"},
    ]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    ran = cedit("trace", path)
    assert ran.code == 1
    assert "1 without a subject" in ran.err
    assert "1 whose prompt does not contain their subject" in ran.err


def test_shades_are_shares_of_the_whole() -> None:
    assert shaded([0.0, 0.5, 1.0], 1.0) == "·▄█"
    assert shaded([0.5, -0.2], 0.0) == "··"
    assert len(shaded([0.1] * 48, 1.0)) == 24
