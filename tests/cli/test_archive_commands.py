"""`cedit export` and `cedit import`: a history moves in one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cedit, request

KEYS = {"type", "file", "revisions", "patches", "pictures", "head", "fingerprint", "length"}


@pytest.fixture
def archive(cedit: Cedit, store: Path, stream: Path, tmp_path: Path) -> Path:
    """The archive of a store after three corrections."""
    assert cedit("apply", stream).code == 0
    assert cedit("export", tmp_path / "history.tar").code == 0
    return tmp_path / "history.tar"


def test_a_history_comes_out_with_the_same_fingerprints(
    cedit: Cedit, archive: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    ran = cedit("import", archive, other, "--json")
    assert ran.code == 0
    assert ran.last.keys() == KEYS | {"store"}
    here, there = cedit("status", "--json").last, cedit("status", "--store", other, "--json").last
    assert (here["head"], here["fingerprint"]) == (there["head"], there["fingerprint"])
    assert cedit("verify", "--store", other).code == 0
    assert cedit("replay", "--store", other, "--json").last["ok"] is True
    assert cedit("ask", request(1)["prompt"], "--store", other).out.startswith("Oslo")


def test_what_it_says(cedit: Cedit, archive: Path, tmp_path: Path) -> None:
    again = cedit("export", tmp_path / "again.tar", "--json")
    assert again.last.keys() == KEYS
    assert (again.last["revisions"], again.last["patches"]) == (4, 3)
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()
    assert "4 revisions" in cedit("export", tmp_path / "third.tar").out
    assert "cedit replay --store" in cedit("import", archive, tmp_path / "other").out


def test_refusals_have_their_exit_codes(cedit: Cedit, archive: Path, tmp_path: Path) -> None:
    assert cedit("export", archive).code == 1
    assert cedit("import", archive, tmp_path / "store").code == 1
    assert cedit("import", tmp_path / "none.tar", tmp_path / "other").code == 2
    assert cedit("import", archive, tmp_path / "a", "--store", tmp_path / "b").code == 2
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    ran = cedit("import", archive, tmp_path / "other")
    assert ran.code == 20
    assert "Traceback" not in ran.err and not (tmp_path / "other").exists()


def test_another_model_path_is_kept(
    cedit: Cedit, archive: Path, model: Path, tmp_path: Path
) -> None:
    cedit("import", archive, tmp_path / "other", "--model", tmp_path / "nowhere")
    assert cedit("ask", "x", "--store", tmp_path / "other").code == 1
    assert str(tmp_path / "nowhere") in cedit("status", "--store", tmp_path / "other").out
