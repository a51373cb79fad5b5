"""Encoders: a tiny one of random weights, and the one that comes with the package. A store on a
decoder that reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from continual.memory.encoder import SentenceEncoder
from continual.new_store import NewStore, init
from continual.session import Session
from tests import tiny_encoders
from tests.continual.conftest import probes_of, write_lines
from tests.tiny_memories import WordScope


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoders.save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def tiny(encoder_folder: Path) -> SentenceEncoder:
    return SentenceEncoder(encoder_folder)


@pytest.fixture(scope="session")
def minilm() -> SentenceEncoder:
    return SentenceEncoder()


@pytest.fixture
def reader(scope: WordScope, reading_model: Path, tmp_path: Path) -> Iterator[Session]:
    """A store on the decoder that reads, with probes."""
    files = {
        "train_probes": write_lines(tmp_path / "train.jsonl", probes_of(range(10), 0)),
        "test_probes": write_lines(tmp_path / "test.jsonl", probes_of(range(10, 20), 1)),
    }
    with init(tmp_path / "store", NewStore(str(reading_model), **files)) as session:
        yield session
