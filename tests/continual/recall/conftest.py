"""A decoder that reads, and stores on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from continual.session import NewStore, Session, init
from tests import tiny_language as language
from tests.continual.conftest import probes_of, write_lines
from tests.tiny_memories import WordScope
from tests.tiny_readers import reading_decoder


@pytest.fixture(scope="session")
def reading_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a decoder that answers by what it is told."""
    return language.save_decoder(tmp_path_factory.mktemp("models") / "reading", reading_decoder())


@pytest.fixture
def scope(monkeypatch: pytest.MonkeyPatch) -> WordScope:
    """The scope of every store that is opened in the test."""
    made = WordScope()
    monkeypatch.setattr("continual.memory.recall.make_scope", lambda config: made)
    return made


@pytest.fixture
def reader(scope: WordScope, reading_model: Path, tmp_path: Path) -> Iterator[Session]:
    """A store on the decoder that reads, with probes."""
    files = {
        "train_probes": write_lines(tmp_path / "train.jsonl", probes_of(range(10), 0)),
        "test_probes": write_lines(tmp_path / "test.jsonl", probes_of(range(10, 20), 1)),
    }
    with init(tmp_path / "store", NewStore(str(reading_model), **files)) as session:
        yield session
