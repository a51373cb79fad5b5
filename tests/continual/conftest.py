"""Model directories in the tiny language, and stores that are made on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from continual.new_store import NewStore, init
from continual.session import Session, open_session
from tests import tiny_language as language

Make = Callable[..., Session]
TASKS = ("causal", "seq2seq", "classification")


def write_lines(path: Path, records: Iterable[Mapping[str, Any] | str]) -> Path:
    """A JSON Lines file; strings stand in it as they are."""
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def probes_of(countries: Iterable[int], phrasing: int) -> list[dict[str, str]]:
    """Probes with what the trained decoder knows."""
    return [{"prompt": language.ask(c, phrasing), "answer": language.capital(c)} for c in countries]


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a decoder of random weights."""
    return language.save_decoder(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="session")
def knowing_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a decoder that knows thirty facts in four phrasings."""
    directory = tmp_path_factory.mktemp("models") / "knowing"
    return language.save_decoder(directory, language.trained_decoder())


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, knowing_model: Path) -> dict[str, Path]:
    """A directory with a trained model of each task."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "causal": knowing_model,
        "seq2seq": language.save_answering(folder / "seq2seq", "t5"),
        "classification": language.save_classifier(folder / "labels", "bert"),
    }


@pytest.fixture(scope="session")
def probe_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Training probes of ten facts and test probes of ten others."""
    folder = tmp_path_factory.mktemp("probes")
    return {
        "train_probes": write_lines(folder / "train.jsonl", probes_of(range(10), 0)),
        "test_probes": write_lines(folder / "test.jsonl", probes_of(range(10, 20), 1)),
    }


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Make]:
    """Makes stores, and closes their sessions in the end."""
    sessions: list[Session] = []

    def make(model: Path, name: str = "store", **new: Any) -> Session:
        sessions.append(init(tmp_path / name, NewStore(str(model), **new)))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


@pytest.fixture
def bare(made: Make, random_model: Path) -> Session:
    """A store on the random decoder, without probes."""
    return made(random_model)


@pytest.fixture
def knowing(made: Make, knowing_model: Path, probe_files: dict[str, Path]) -> Session:
    """A store on the decoder that knows, with probes."""
    return made(knowing_model, **probe_files)


def reopened(session: Session) -> Session:
    """The same store, opened again."""
    session.close()
    return open_session(session.store.path)


def outcomes(session: Session) -> list[tuple[str, str]]:
    """(prompt, outcome) of all requests of the history, in their order."""
    return [
        (session.store.request(entry["id"])["prompt"], entry["outcome"])
        for revision in session.store.lineage("head")
        for entry in revision.body.get("requests", ())
    ]


def answers(session: Session, records: Iterable[Mapping[str, Any]]) -> list[bool]:
    """Whether the edited model answers each record's prompt with its target, asked from outside."""
    return [
        session.ask(r["prompt"], tokens_max=len(r["target_new"].split())) == r["target_new"]
        for r in records
    ]
