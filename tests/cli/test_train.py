"""Collecting key statistics from the command line."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

import cli.output
from cli.commands import train
from cli.output import Output
from continual.session import open_session
from continual.statistics import CollectingProgress, Statistics
from store.lock import WriterLock
from tests import tiny_language
from tests.cli.conftest import CITIES, Cedit, write_lines


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "wiki.jsonl", [{"text": f"{c} lies by a river."} for c in CITIES])


BYTES = sum(len(f"{city} lies by a river.") for city in CITIES)  # a byte is a token


def test_each_block_is_a_line_of_json(cedit: Cedit, store: Path, text: Path) -> None:
    ran = cedit("train", "stats", "--text", text, "--json")
    assert ran.code == 0
    assert [record["block"] for record in ran.records] == [0, 1]
    for record in ran.records:
        assert record.keys() == {"type", "block", "keys", "convergence", "digest", "stored"}
        assert record["type"] == "statistics"
        assert record["keys"] == BYTES
        assert 0 < record["convergence"] < 1
        assert Path(record["stored"]).is_relative_to(store / "cache" / "statistics")
        assert record["digest"] == Path(record["stored"]).stem


def test_what_was_stored_is_what_editors_get(cedit: Cedit, store: Path, text: Path) -> None:
    record = cedit("train", "stats", "--text", text, "--json").last
    with open_session(store, writable=False) as session:
        found = Statistics.of(session.store, session.edited).get(1)
    assert (found.count, found.digest) == (record["keys"], record["digest"])


def test_people_get_a_table(cedit: Cedit, store: Path, text: Path) -> None:
    ran = cedit("train", "stats", "--text", text)
    header, *rows = ran.out.splitlines()
    assert header.split() == ["block", "keys", "convergence", "stored"]
    assert [row.split()[:2] for row in rows] == [["0", str(BYTES)], ["1", str(BYTES)]]
    assert all(Path(row.split()[3]).is_file() for row in rows)


def test_blocks_and_tokens_are_chosen(cedit: Cedit, store: Path, text: Path) -> None:
    ran = cedit("train", "stats", "--text", text, "--blocks", "1", "--tokens", 30, "--json")
    assert [(record["block"], record["keys"]) for record in ran.records] == [(1, 30)]
    both = cedit("train", "stats", "--text", text, "--blocks", "0-1,1", "--json")
    assert [record["block"] for record in both.records] == [0, 1]


def test_several_texts_follow_each_other(cedit: Cedit, store: Path, text: Path) -> None:
    plain = text.with_name("more.txt")
    plain.write_text("A town.\n\nA ford.\n")
    ran = cedit("train", "stats", "--text", text, "--text", plain, "--json")
    assert ran.last["keys"] == BYTES + 14


def test_the_history_is_as_it_was(cedit: Cedit, store: Path, text: Path) -> None:
    before = cedit("status", "--json").last
    cedit("train", "stats", "--text", text)
    assert cedit("status", "--json").last == before
    assert cedit("verify").code == 0


def test_a_store_that_is_being_written_is_no_hindrance(
    cedit: Cedit, store: Path, text: Path
) -> None:
    lock = WriterLock.acquire(store / "lock")
    assert cedit("train", "stats", "--text", text).code == 0
    lock.release()


def test_without_a_text_the_base_writes_its_own_and_says_so(cedit: Cedit, store: Path) -> None:
    ran = cedit("train", "stats", "--json")
    assert ran.code == 0
    assert "the base writes 2,048 tokens of its own" in ran.err
    assert all(record["keys"] >= 2048 for record in ran.records)
    digests = [record["digest"] for record in ran.records]
    again = cedit("train", "stats", "--json")
    assert [record["digest"] for record in again.records] == digests


def test_a_block_that_the_model_has_not_is_named(cedit: Cedit, store: Path, text: Path) -> None:
    ran = cedit("train", "stats", "--text", text, "--blocks", "2")
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == "cedit: The model has no block 2: choose of 0 to 1."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b"good\nb\xffd", "line 2: is not UTF-8"),
        (b"a\0b", "line 1: holds a NUL"),
        (b'{"text": "a"}\n{"txt": "b"}', "line 2: has no text"),
    ],
)
def test_a_file_that_is_no_text_is_named_in_one_line(
    cedit: Cedit, store: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "hostile"
    path.write_bytes(content)
    ran = cedit("train", "stats", "--text", path)
    assert ran.code == 1
    said = ran.err.splitlines()[-1]
    assert str(path) in said
    assert message in said
    assert "bug" not in said


def test_a_file_that_is_not_there_is_a_usage_error(cedit: Cedit, store: Path) -> None:
    assert cedit("train", "stats", "--text", "missing.txt").code == 2


def test_train_alone_tells_what_there_is(cedit: Cedit) -> None:
    ran = cedit("train")
    assert ran.code == 2
    assert "stats" in ran.err


def test_a_terminal_sees_how_far_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    monkeypatch.setattr(Output, "is_live", True)
    monkeypatch.setattr(cli.output, "_console", lambda _: console)
    bar = train._bar

    def lasting(out: Output) -> object:
        made = bar(out)
        made.live.transient = False
        return made

    monkeypatch.setattr(train, "_bar", lasting)
    train._watch(
        Output(as_json=False),
        iter([CollectingProgress(1, 900), CollectingProgress(12, 4000)]),
        8000,
    )
    assert "4,000 tokens of 12 documents" in shown.getvalue()


def test_serac_is_trained_on_a_file_of_requests(
    cedit: Cedit, store: Path, stream: Path, tmp_path: Path
) -> None:
    target = tmp_path / "serac"
    ran = cedit("train", "serac", stream, "--out", target, "--epochs", 2, "--json")
    assert ran.code == 0
    *epochs, made = ran.records
    assert [record["epoch"] for record in epochs] == [1, 2]
    assert all(r.keys() == {"type", "epoch", "loss", "inside", "beside"} for r in epochs)
    assert made["type"] == "model"
    assert (target / "config.json").is_file()
    again = cedit("train", "serac", stream, "--out", target)
    assert again.code == 1
    assert "exists" in again.err


def test_serac_is_trained_for_causal_models_alone(cedit: Cedit, tmp_path: Path) -> None:
    model = tiny_language.save_classifier(tmp_path / "bert", "bert")
    store = tmp_path / "s"
    assert cedit("init", store, "--model", model, "--task", "classification").code == 0
    stream = tmp_path / "stream.jsonl"
    stream.write_text('{"prompt": "the capital of Badar is", "target_new": "south"}\n')
    ran = cedit("train", "serac", stream, "--out", tmp_path / "h", "--store", store)
    assert ran.code == 1
    assert "serac edits causal models, and this store's task is classification" in ran.err
    assert not (tmp_path / "h").exists()


def test_statistics_go_from_store_to_store_as_a_pack(
    cedit: Cedit, store: Path, text: Path, tmp_path: Path
) -> None:
    pack = tmp_path / "stats.safetensors"
    collected = cedit("train", "stats", "--text", text, "--out", pack, "--json")
    assert collected.last["type"] == "pack"
    assert hashlib.sha256(pack.read_bytes()).hexdigest() == collected.last["digest"]
    shutil.rmtree(store / "cache" / "statistics")
    taken = cedit("train", "stats", "--from", pack, "--json")
    assert taken.code == 0
    assert taken.records == collected.records[:-1]
    again = cedit("train", "stats", "--blocks", "1", "--out", pack)  # collects nothing
    assert again.code == 0
    assert "packed in" in again.out


def test_a_pack_is_taken_or_text_is_read(cedit: Cedit, store: Path, text: Path) -> None:
    ran = cedit("train", "stats", "--from", text, "--text", text)
    assert ran.code == 2
    assert "--from collects nothing" in ran.err
    ran = cedit("train", "stats", "--from", text)
    assert ran.code == 1
    assert "is no pack of key statistics" in ran.err
