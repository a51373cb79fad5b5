"""`cedit save` and `cedit corrections`: the model and the corrections, taken along."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from cli.main import run
from continual.history.written import csv_text, json_lines
from continual.requests import Request
from continual.saving.architectures import ARCHITECTURES, HEADER, table_rows
from continual.streams import open_stream
from tests.cli.conftest import ROOT, Cedit, request, write_lines

PLAIN = ("--editor", "tpatcher", "--set", "tpatcher.asks_subject=false")
PAGE = ROOT / "docs" / "how-to" / "take-it-along.md"


@pytest.fixture
def applied(store: Path, stream: Path, cedit: Cedit) -> Path:
    assert cedit("apply", stream, *PLAIN).code == 0
    return store


def test_save_writes_a_model_that_transformers_loads(
    applied: Path, cedit: Cedit, tmp_path: Path
) -> None:
    ran = cedit("save", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert ran.last["type"] == "saved" and ran.last["unexpected"] == []
    assert ran.last["corrections"] == ran.last["probes"]["edit"]["right_when_saved"] == 3
    assert ran.last["widening"]["neurons"] > 0
    files = {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}
    assert ran.last["files"] == files and ran.last["bytes"] == sum(files.values())
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.n_inner == ran.last["widening"]["width"]


def test_save_says_what_it_did_and_refuses_the_rest(
    applied: Path, cedit: Cedit, tmp_path: Path
) -> None:
    ran = cedit("save", tmp_path / "out", "--at", "@1")
    assert ran.code == 0 and "1 correction," in ran.out and "every probe asked again" in ran.out
    (tmp_path / "out" / "mine.txt").write_text("x")
    ran = cedit("save", tmp_path / "out")
    assert ran.code == 1 and "mine.txt" in ran.err and "--force" in ran.err
    ran = cedit("save", tmp_path / "out", "--force", "--without", "neurons,memory")
    assert ran.code == 0 and "3 corrections lost" in ran.err
    assert cedit("save").code == 2
    assert cedit("save", tmp_path / "x", "--at", "nowhere").code == 2
    ran = cedit("save", tmp_path / "x", "--as", "peft", "--without", "nonsense")
    assert ran.code == 1 and "--without takes" in ran.err
    assert not (tmp_path / "x").exists()


def test_the_table_of_architectures_stands_in_the_docs(cedit: Cedit) -> None:
    ran = cedit("save", "--forms", "--json")
    assert [r["model_type"] for r in ran.records] == list(ARCHITECTURES)
    lines = [f"| {' | '.join(row)} |" for row in table_rows()]
    table = "\n".join([f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}", *lines])
    assert table in PAGE.read_text("utf-8")
    printed = cedit("save", "--forms").out
    assert all(row[0] in printed for row in table_rows())


# -- the corrections, to be applied again

HARD: list[dict[str, Any]] = [
    {
        "prompt": "The capital of country 7, as they say, is",
        "target_new": 'Bonn, "really"',
        "subject": "country 7",
        "relation": "capital",
        "target_old": "Oslo",
        "rephrases": ["Country 7 has its capital in", "Line one\nline two of country 7:"],
        "held_out_rephrases": [[{"role": "user", "content": "Capital of country 7?"}]],
        "locality": [{"prompt": "Water is", "answer": "wet", "name": "near"}],
        "portability": [{"prompt": "Country 7 is governed from", "answer": "Bonn"}],
        "case": "row 17",
        "source": "the desk",
    },
    {"prompt": "  spaces and a tab\t", "target_new": " Bonn "},
    {"prompt": "[not JSON", "target_new": "Bonn", "forms": ["plain", "chat"]},
    {
        "messages": [
            {"role": "user", "content": "Where is\nthe capital?"},
            {"role": "assistant", "content": "Of which country?"},
            {"role": "user", "content": 'Country 9, "please"'},
        ],
        "target_new": "Bonn",
    },
    {"prompt": "=SUM(A1)", "target_new": "Bönn – 北京", "subject": "SUM"},
    {"prompt": "Carriage\r\nreturn", "target_new": "Bonn"},
]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_every_kind_of_request_is_read_back_as_itself(form: str, tmp_path: Path) -> None:
    plain = [{k: v for k, v in record.items() if k != "source"} for record in HARD]
    requests = [Request.from_json(record) for record in plain]
    requests[0] = requests[0].model_copy(update={"extra": {"source": "the desk"}})
    text = "".join((csv_text if form == "csv" else json_lines)(requests))
    file = tmp_path / f"corrections.{form}"
    file.write_bytes(text.encode("utf-8"))
    items = list(open_stream(str(file)))
    assert [item.reason for item in items if not item.requests] == []
    read = [r for item in items for r in item.requests]
    assert [r.id for r in read] == [r.id for r in requests]
    assert [r.case for r in read] == [r.case for r in requests]
    assert [dict(r.extra) for r in read] == [dict(r.extra) for r in requests]


def test_corrections_are_applied_to_a_fresh_store(
    applied: Path, model: Path, cedit: Cedit, tmp_path: Path
) -> None:
    record = {
        **request(7, 'Bonn, "b"'),
        "rephrases": ["Country 7 has its\ncapital in"],
        "locality": [{"prompt": "Water is", "answer": "wet"}],
        "case": "row 17",
        "source": "the desk",
    }
    more = write_lines(tmp_path / "more.jsonl", [record, request(1, "Graz")])
    cedit("apply", more, *PLAIN)
    lines = cedit("corrections")
    assert lines.code == 0
    assert [json.loads(line)["target_new"] for line in lines.out.splitlines()] == [
        "Lyon",
        "Rome",
        'Bonn, "b"',
        "Graz",
    ]
    assert len(cedit("corrections", "--at", "@2").out.splitlines()) == 2
    for option, name in (("--jsonl", "a.jsonl"), ("--csv", "a.csv")):
        file = tmp_path / name
        file.write_bytes(cedit("corrections", option).out.encode("utf-8"))
        fresh = tmp_path / f"store-{name}"
        told = ("--model", str(model), "--no-watch", "--no-calibration")
        assert run(["init", str(fresh), *told]) == 0
        ran = cedit("apply", file, "--store", fresh, "--editor", "tpatcher", "--json")
        assert ran.last["quarantined"] == 0
        wanted = [r["id"] for r in cedit("list", "--json").records if r["in_force"]]
        assert [r["id"] for r in cedit("list", "--json", "--store", fresh).records] == wanted
    assert next(csv.reader(io.StringIO(cedit("corrections", "--csv").out)))[:2] == [
        "prompt",
        "target_new",
    ]


def test_a_store_without_corrections_writes_none(store: Path, cedit: Cedit) -> None:
    assert cedit("corrections").out == ""
    assert cedit("corrections", "--csv").out == "prompt,target_new\n"
