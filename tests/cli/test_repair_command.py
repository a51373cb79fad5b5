"""`cedit verify --repair`: heals, asks before something is lost, and says what was."""

from __future__ import annotations

from pathlib import Path

import pytest

from store import Store
from store.journal import Put, seq_key, text_key
from tests.cli.conftest import Cedit, request


@pytest.fixture
def edited(cedit: Cedit, store: Path, stream: Path) -> Path:
    """The store after three corrections."""
    assert cedit("apply", stream).code == 0
    return store


def damage_patch(store: Path, seq: int) -> str:
    with Store.open(store) as opened:
        patch = opened.revision(f"@{seq}").patch
        assert patch is not None
        opened.blobs.path(patch.sha256).write_bytes(b"nonsense")
        return patch.sha256


def test_a_sound_store_stays_as_it_is(cedit: Cedit, edited: Path) -> None:
    ran = cedit("verify", "--repair", "--json")
    assert (ran.code, ran.records) == (0, [{"ok": True, "problems": []}])
    assert not (edited / "damaged").exists()


def test_an_index_is_healed_without_a_question(cedit: Cedit, edited: Path) -> None:
    with Store.open(edited, writable=True) as opened:
        head = opened.head_id
        opened.journal.write([Put("refs", text_key("head"), None)])
    assert cedit("verify").code == 20
    assert "cedit verify --repair" in cedit("verify").out
    ran = cedit("verify", "--repair", "--json")
    assert ran.code == 0
    assert {"journal/refs/head", "journal"} <= {r.get("object") for r in ran.records}
    assert ran.last == {"ok": True, "problems": []}
    assert cedit("status", "--json").last["head"] == head


def test_nothing_is_lost_where_nobody_can_be_asked(cedit: Cedit, edited: Path) -> None:
    sha256 = damage_patch(edited, 2)
    ran = cedit("verify", "--repair")
    assert ran.code == 2
    assert "--yes" in ran.err
    assert f"patches/{sha256}: take it out of the model" in ran.out
    assert cedit("verify").code == 20
    with Store.open(edited) as opened:
        assert opened.length == 4


def test_a_lost_patch_is_taken_out_and_its_correction_can_be_applied_again(
    cedit: Cedit, edited: Path, tmp_path: Path
) -> None:
    sha256 = damage_patch(edited, 2)
    ran = cedit("verify", "--repair", "--yes")
    assert ran.code == 0
    assert "1 correction no longer in force:\n  The capital of country 1 is" in ran.out
    assert (edited / "damaged" / "1" / f"{sha256}.safetensors").read_bytes() == b"nonsense"
    assert cedit("ask", request(2)["prompt"]).out.startswith("Rome")
    assert not cedit("ask", request(1)["prompt"]).out.startswith("Oslo")
    assert cedit("log", "--json").records[0]["operation"] == "repair"
    from tests.cli.conftest import write_lines

    assert cedit("apply", write_lines(tmp_path / "again.jsonl", [request(1)])).code == 0
    assert cedit("ask", request(1)["prompt"]).out.startswith("Oslo")
    verified = cedit("verify", "--json")
    assert verified.code == 0
    assert [p["harmless"] for p in verified.last["problems"]] == [True]


def test_a_history_that_is_cut_says_from_where(cedit: Cedit, edited: Path) -> None:
    with Store.open(edited, writable=True) as opened:
        opened.journal.write([Put("revisions", seq_key(2), b"{}")])
    ran = cedit("verify", "--repair", "--yes", "--json")
    assert ran.code == 0
    assert "2 revisions from @2 on" in [r.get("loses") for r in ran.records]
    assert cedit("status", "--json").last["seq"] == 1
    assert cedit("replay").code == 0


@pytest.mark.parametrize("file", ["cedit.toml", "journal/data.mdb"])
def test_what_cannot_be_opened_is_not_touched(cedit: Cedit, edited: Path, file: str) -> None:
    (edited / file).write_bytes(b"format = ")
    ran = cedit("verify", "--repair", "--yes")
    assert ran.code == 20
    assert "import" in ran.err and "Traceback" not in ran.err
    assert (edited / file).read_bytes() == b"format = "
