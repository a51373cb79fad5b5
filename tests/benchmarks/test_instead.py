"""What a user would take instead of an editor, on a tiny model that knows its facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import instead
from benchmarks.instead import Asked, Examination, Judge, Lora, LoraRecipe, Retrieval, examination
from continual.memory.encoder import SentenceEncoder
from continual.new_store import NewStore, init
from continual.requests import Request
from continual.session import Session
from continual.watch.config import UNWATCHED
from tests import tiny_language as language
from tests.tiny_encoders import save_encoder

COUNTRIES = (1, 5, 12)


def record(country: int) -> dict[str, Any]:
    """A correction with a wording to learn from, one held out, and another country beside it."""
    return language.correction(
        country,
        rephrases=[language.ask(country, 1)],
        held_out_rephrases=[language.ask(country, 2)],
        locality=[{"prompt": language.ask(country + 1), "answer": "anything"}],
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.save_decoder(
        tmp_path_factory.mktemp("models") / "knowing", language.trained_decoder()
    )


@pytest.fixture
def session(model: Path, tmp_path: Path) -> Session:
    with init(tmp_path / "store", NewStore(str(model), watch=UNWATCHED)) as opened:
        yield opened


@pytest.fixture
def exam(session: Session) -> Examination:
    requests = [Request.from_json(record(country)) for country in (*COUNTRIES, 20)]
    known = Request.from_json(language.correction(3, language.capital(3)))
    found = examination(session, [known, *requests], len(COUNTRIES), 5)
    assert isinstance(found, Examination)
    return found


def test_the_questions_are_of_what_the_base_gets_wrong_and_of_its_own_answers(exam):
    assert [item.edit.prompt for item in exam.items] == [language.ask(c) for c in COUNTRIES]
    (neighbour,) = exam.items[0].neighbours
    assert neighbour == Asked(language.ask(2), language.capital(2))
    assert exam.tests == (Asked(language.ask(21), language.capital(21)),)
    assert len(exam.of(2)["ER"]) == len(exam.of(2)["GR"]) == 2


def test_a_lora_learns_its_corrections_and_leaves_the_session_alone(session, exam):
    judge = Judge(session)
    before = {name: p.clone() for name, p in session.model.named_parameters()}
    lora = Lora(judge, LoraRecipe(rank=8, learning_rate=1e-2, epochs=60))
    costs = lora.take(exam.items)
    questions = exam.of(len(exam.items))["ER"]
    assert (
        lora.right(questions) == [True] * 3 and judge.right(judge.encoded(questions)) == [False] * 3
    )
    assert costs["edit_bytes"] > 0 and "epochs" in costs["note"]
    assert all(bool((p == before[n]).all()) for n, p in session.model.named_parameters())


def test_retrieval_puts_the_nearest_correction_last_as_far_as_there_is_room(
    session, exam, tmp_path
):
    retrieval = Retrieval(Judge(session), 2, SentenceEncoder(save_encoder(tmp_path)))
    costs = retrieval.take(exam.items)
    retrieval.take(exam.items)
    assert costs["edit_bytes"] > 4 * 16 and len(retrieval._lines) == 3
    fronts = []
    judge = retrieval._judge

    class Heard(Judge):
        def encoded(self, asked, front=None):
            fronts.extend(front or [])
            return super().encoded(asked, front)

    retrieval._judge = Heard(session)
    questions = exam.of(3)["ER"]
    assert len(retrieval.right(questions)) == 3
    for asked, front in zip(questions, fronts, strict=True):
        first, nearest, last = front.splitlines() + [""] * (3 - len(front.splitlines()))
        assert nearest == f"New Fact: {asked.prompt} {asked.answer}" and first.startswith("New")
        assert front.endswith("Prompt: ") and last == "Prompt: "
    long = Asked(" ".join([language.ask(1)] * 8), language.capital(1))
    assert retrieval._fitting(long, list(retrieval._lines)) == ""
    assert not judge.fits(" ".join([language.ask(1)] * 12), language.capital(1))


def test_the_command_has_a_row_for_each_way_at_each_mark(model, tmp_path, monkeypatch, capsys):
    stream = tmp_path / "stream.jsonl"
    stream.write_text("".join(json.dumps(record(c)) + "\n" for c in (*COUNTRIES, 20)))
    out = tmp_path / "out.json"
    given = ["instead", "--model", str(model), "--stream", str(stream), "--edits", "3"]
    given += ["--marks", "2", "--rows", "tpatcher,lora-replay", "--json", str(out), "--unwatched"]
    monkeypatch.setattr("sys.argv", [*given, "--learning-rate", "0.01", "--epochs", "40"])
    instead.main()
    rows = json.loads(out.read_text())["rows"]
    assert [(r["row"], r["edits"]) for r in rows] == [
        ("tpatcher", 2),
        ("tpatcher", 3),
        ("lora-replay", 2),
        ("lora-replay", 3),
    ]
    assert rows[1]["ER"] == 1.0 and rows[3]["ER"] == 1.0 and rows[3]["note"].endswith("epochs")
    assert all({"GR", "Locality", "TestR", "edit_ms", "edit_bytes"} <= row.keys() for row in rows)
    assert "Instead of an editor" in capsys.readouterr().out
