"""Choosing settings from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import CITIES, Cedit, write_lines

GIVEN = '\n[editor.memit]\nblocks = [0]\nplace = "end"\nsteps_max = 4\nclamp_norm_factor = 3.0\n'


@pytest.fixture
def corrections(tmp_path: Path) -> Path:
    lines = [{"prompt": f"{city} is by the", "target_new": "x", "subject": city} for city in CITIES]
    return write_lines(tmp_path / "corrections.jsonl", lines)


@pytest.fixture
def quick(store: Path) -> Path:
    """The store with settings that leave little to try."""
    toml = store / "cedit.toml"
    text = toml.read_text().replace("at_first_use = false", "at_first_use = false\nfacts = 4")
    toml.write_text(text + GIVEN)
    return store


pytestmark = pytest.mark.watched

SOLVED = {"moment_weight", "general_weight"}
"""Settings of a solve."""


def test_every_trial_is_evidence_in_json(cedit: Cedit, quick: Path, corrections: Path) -> None:
    ran = cedit("calibrate", corrections, "--editor", "memit", "--json")
    assert ran.code == 0, ran.err
    (record,) = ran.records
    assert record["type"] == "calibration" and record["editor"] == "memit"
    assert record["sample"] == {**record["sample"], "source": "the stream", "facts": 4}
    assert {trial["axis"] for trial in record["trials"]} >= {"weight of the statistics", "budget"}
    assert set(record["chosen"]) <= SOLVED | {"overshoot", "drift_max"}
    trial = record["trials"][0]
    assert trial["settings"]["blocks"] == [0]
    assert 0 <= trial["arrives"] <= 1 and 0 <= trial["general"] <= 1


def test_people_get_a_table_what_is_chosen_and_a_plot(
    cedit: Cedit, quick: Path, corrections: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "evidence.png"
    ran = cedit("calibrate", corrections, "--editor", "memit", "--plot", plot)
    assert ran.code == 0, ran.err
    assert "4 facts of the stream" in ran.out
    assert "moment_weight" in ran.out.split("chosen")[1]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_what_was_measured_is_shown_again_without_measuring(
    cedit: Cedit, quick: Path, corrections: Path
) -> None:
    first = cedit("calibrate", corrections, "--editor", "memit", "--json").last
    assert cedit("calibrate", corrections, "--editor", "memit", "--json").last == first
    again = cedit("calibrate", corrections, "--editor", "memit", "--again", "--json").last
    assert again["trials"][0]["seconds"] != first["trials"][0]["seconds"]


def test_an_editor_without_settings_to_try_is_named(cedit: Cedit, quick: Path) -> None:
    ran = cedit("calibrate", "--editor", "ft-all")
    assert ran.code == 1
    assert "ft-all offers no settings to try" in ran.err
