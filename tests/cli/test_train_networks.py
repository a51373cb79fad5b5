"""Training networks of editors by gradients from the command line, and correcting with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from continual.gradients.trained import NetworkFile
from tests.cli.conftest import CITIES, Cedit, write_lines

METHODS = ("mend", "malmen", "ke")


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return write_lines(
        tmp_path / "corrections.jsonl",
        [
            {"prompt": f"{city} is", "target_new": "fine", "rephrases": [f"And {city} is"]}
            for city in CITIES
        ],
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_network_is_used_by_the_lines_that_its_training_ends_with(
    cedit: Cedit, store: Path, requests: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / f"{method}.safetensors"
    before = cedit("status", "--json").last
    trained = cedit("train", method, requests, "--out", out, "--epochs", "2")
    assert trained.code == 0 and "epoch 1: loss" in trained.out
    assert cedit("status", "--json").last == before
    lines = trained.out[trained.out.index(f"[editor.{method}]") :]
    assert NetworkFile.of(out).digest in lines
    config = store / "cedit.toml"
    config.write_text(f"{config.read_text()}\n{lines}\n")
    applied = cedit("fix", "Kiel is", "by", "--editor", method, "--json")
    assert applied.code in (0, 3), applied.err
    assert "cedit train" not in applied.err
    out.write_bytes(out.read_bytes()[:-4] + bytes(4))
    refused = cedit("fix", "Lyon is", "by", "--editor", method)
    assert refused.code == 1 and "another file than the settings name" in refused.err


def test_each_epoch_and_the_file_are_a_line_of_json(
    cedit: Cedit, store: Path, requests: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mend.safetensors"
    told = cedit("train", "mend", requests, "--out", out, "--epochs", "1", "--json")
    epoch, last = told.records
    assert epoch.keys() == {"type", "epoch", "loss", "inside", "beside"}
    assert last == {
        "type": "network",
        "network": str(out),
        "network_digest": NetworkFile.of(out).digest,
    }
    again = cedit("train", "mend", requests, "--out", out)
    assert again.code == 1 and "name a new file" in again.err


def test_requests_that_teach_nothing_are_refused_in_one_line(
    cedit: Cedit, store: Path, tmp_path: Path
) -> None:
    one = write_lines(tmp_path / "one.jsonl", [{"prompt": "Kiel is", "target_new": "fine"}])
    ran = cedit("train", "mend", one, "--out", tmp_path / "mend.safetensors")
    assert ran.code == 1 and "give at least two" in ran.err.splitlines()[-1]
