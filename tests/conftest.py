"""What tests of the engine and of the command line share: a decoder that reads, and a scope."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # as the command does, before it is too late

from continual.calibration.config import CalibrationConfig
from continual.watch.config import UNWATCHED, WatchConfig
from tests import tiny_language as language
from tests.tiny_memories import WordScope
from tests.tiny_readers import reading_decoder


@pytest.fixture(scope="session")
def reading_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a decoder that answers by what it is told."""
    return language.save_decoder(tmp_path_factory.mktemp("models") / "reading", reading_decoder())


_of = WatchConfig.of


def _watching_nothing(table: Mapping[str, Any]) -> WatchConfig:
    """A tiny model has few words to go on with, and most tests are about something else."""
    return _of({**UNWATCHED, **table})


WatchConfig.of = _watching_nothing  # type: ignore[method-assign, assignment]


@pytest.fixture(autouse=True)
def _watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests marked `watched` have stores as new ones are: general text and neighbours."""
    if request.node.get_closest_marker("watched") is not None:
        monkeypatch.setattr(WatchConfig, "of", _of)


_calibrated = CalibrationConfig.of


def _not_by_itself(table: Mapping[str, Any]) -> CalibrationConfig:
    """Most tests know what their editors' settings are."""
    return replace(_calibrated(table), at_first_use=False)


CalibrationConfig.of = _not_by_itself  # type: ignore[method-assign, assignment]


@pytest.fixture(autouse=True)
def _measured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests marked `calibrated` have editors that are calibrated at their first use."""
    if request.node.get_closest_marker("calibrated") is not None:
        monkeypatch.setattr(CalibrationConfig, "of", _calibrated)


@pytest.fixture
def scope(monkeypatch: pytest.MonkeyPatch) -> WordScope:
    """The scope of every store that is opened in the test."""
    made = WordScope()
    monkeypatch.setattr("continual.memory.recall.make_scope", lambda config: made)
    return made
