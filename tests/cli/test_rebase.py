"""`cedit rebase` and what `cedit diff` says of behaviour."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cedit, request, save_model

KEYS = {
    *("type", "store", "model", "requests", "needed", "right_already", "failed", "failures"),
    *("SR", "GR", "ER", "TrainR", "TestR", "head", "fingerprint"),
}


@pytest.fixture
def edited(cedit: Cedit, store: Path, stream: Path) -> Path:
    """The store after three corrections."""
    assert cedit("apply", stream).code == 0
    return store


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model."""
    folder = tmp_path_factory.mktemp("other")
    save_model(folder, seed=7)
    return folder


def test_corrections_move_to_another_model(
    cedit: Cedit, edited: Path, other: Path, tmp_path: Path
) -> None:
    before = cedit("status", "--json").last
    ran = cedit("rebase", "--model", other, tmp_path / "new", "--json")
    assert ran.code == 0
    assert [r["type"] for r in ran.records] == ["step"] * 3 + ["rebase"]
    assert ran.last.keys() >= KEYS
    assert (ran.last["needed"], ran.last["failed"], ran.last["requests"]) == (3, 0, 3)
    said = cedit("ask", request(1)["prompt"], "--store", tmp_path / "new")
    assert said.out.startswith("Oslo")
    assert cedit("status", "--json").last == before
    again = cedit("rebase", "--model", other, tmp_path / "new")
    assert again.code == 0
    assert "3 corrections: 3 still needed, 0 right already, 0 failed" in again.out


def test_the_new_store_lies_beside_the_old_one(cedit: Cedit, edited: Path, other: Path) -> None:
    assert cedit("rebase", "--model", other).code == 0
    beside = edited.with_name("store-rebased")
    assert cedit("verify", "--store", beside).code == 0


def test_refusals(cedit: Cedit, edited: Path, other: Path, tmp_path: Path) -> None:
    assert cedit("rebase").code == 2
    assert cedit("rebase", "--model", tmp_path / "nothing", tmp_path / "new").code == 1
    assert not (tmp_path / "new").exists()
    ran = cedit("rebase", "--model", other, edited)
    assert ran.code == 1
    assert "Traceback" not in ran.err


def test_diff_asks_both_models_and_names_the_patches(cedit: Cedit, edited: Path) -> None:
    prompt = request(1)["prompt"]
    found = cedit("diff", "@1", "@2", "--ask", prompt, "--json").last
    (asked,) = found["answers"]
    assert asked["prompt"] == prompt
    assert asked["to"].startswith("Oslo") and not asked["from"].startswith("Oslo")
    (patch,) = found["patches"]
    assert (patch["change"], patch["seq"]) == ("added", 2)
    assert patch["bytes"] == found["patch_bytes_added"]
    said = cedit("diff", "@2", "@1", "--ask", prompt).out
    assert "- patch of @2" in said
    assert f"? {prompt} → Oslo" in said
