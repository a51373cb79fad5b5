"""`cedit migrate`, and what commands say of a store of another format."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cedit


def set_format(store: Path, number: int) -> None:
    toml = store / "cedit.toml"
    toml.write_text(toml.read_text().replace("format = 4", f"format = {number}"))


def test_an_older_store_is_migrated_on_request(cedit: Cedit, store: Path, stream: Path) -> None:
    cedit("apply", stream)
    set_format(store, 1)
    ran = cedit("status")
    assert ran.code == 12
    assert "cedit migrate" in ran.err
    ran = cedit("migrate", "--json")
    assert ran.code == 0
    assert ran.last.keys() == {"type", "store", "before", "after", "changes", "backup"}
    assert (ran.last["before"], ran.last["after"]) == (1, 4)
    assert cedit("verify").code == 0
    assert "already" in cedit("migrate").out


def test_a_newer_store_is_refused(cedit: Cedit, store: Path) -> None:
    set_format(store, 6)
    for command in (("status",), ("migrate",), ("verify",), ("gc", "--yes")):
        ran = cedit(*command)
        assert ran.code == 12
        assert "format = 6" in ran.err
