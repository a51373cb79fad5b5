"""A decoder whose facts can be written at its subjects, stores on it, and corrections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from continual.new_store import NewStore, init
from continual.session import Session
from tests import tiny_language as language
from tests.continual.associative_bench import ENDINGS, known, mediating_decoder
from tests.continual.conftest import write_lines

FACTS = 6
QUICK = {"steps_max": 12, "step": 0.5, "contexts": 0}  # settings that are not tried, in little time


def correction(country: int, ending: int = 0) -> dict[str, Any]:
    """A record that gives a country another capital; one of its rephrases may be learned from."""
    return {
        "prompt": known(country, ending),
        "target_new": language.CAPITALS[(7 * country + 4) % len(language.CAPITALS)],
        "subject": language.COUNTRIES[country],
        "relation": "capital",
        "rephrases": [known(country, (ending + 1) % len(ENDINGS))],
    }


@pytest.fixture(scope="session")
def mediating_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a decoder that looks a fact up at its subject."""
    folder = tmp_path_factory.mktemp("models") / "mediating"
    return language.save_decoder(folder, mediating_decoder())


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """Twelve corrections."""
    return write_lines(tmp_path / "stream.jsonl", [correction(c) for c in range(12)])


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    """Ten other facts that the decoder knows."""
    lines = [{"prompt": known(c), "answer": language.capital(c)} for c in range(20, 30)]
    return write_lines(tmp_path / "probes.jsonl", lines)


@pytest.fixture
def opened(mediating_model: Path, probes: Path, tmp_path: Path) -> Iterator[Session]:
    """A new store with general text, of a model that is not calibrated yet."""
    new = NewStore(
        str(mediating_model),
        train_probes=probes,
        calibration={"at_first_use": True, "facts": FACTS, "stays_min": 0.5},
        watch={"texts": 8, "tokens": 6},
        editors={"memit": QUICK},
    )
    with init(tmp_path / "store", new) as session:
        yield session
