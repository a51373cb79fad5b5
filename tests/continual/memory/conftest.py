"""Encoders: a tiny one of random weights, and the one that comes with the package."""

from pathlib import Path

import pytest

from continual.memory.encoder import SentenceEncoder
from tests import tiny_encoders


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoders.save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def tiny(encoder_folder: Path) -> SentenceEncoder:
    return SentenceEncoder(encoder_folder)


@pytest.fixture(scope="session")
def minilm() -> SentenceEncoder:
    return SentenceEncoder()
