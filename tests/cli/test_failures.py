"""How failures end: one line for people, an exit code for programs, never a traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import cli.commands.status
from store.lock import WriterLock
from tests.cli.conftest import Cedit, Start, save_model


def test_no_store(cedit: Cedit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CEDIT_STORE", raising=False)
    ran = cedit("status")
    assert ran.code == 10
    assert "cedit init" in ran.err
    assert ran.err.count("\n") == 1


def test_a_store_that_is_being_written_is_locked(cedit: Cedit, store: Path, stream: Path) -> None:
    lock = WriterLock.acquire(store / "lock")
    ran = cedit("apply", stream)
    assert ran.code == 11
    assert f"process {os.getpid()}" in ran.err
    assert cedit("status").code == 0
    lock.release()
    assert cedit("apply", stream).code == 0


def test_another_format_version(cedit: Cedit, store: Path) -> None:
    config = store / "cedit.toml"
    config.write_text(config.read_text().replace("format = 4", "format = 99"))
    assert cedit("status").code == 12


def test_another_base_model(
    cedit: Cedit, store: Path, model: Path, stream: Path, tmp_path: Path
) -> None:
    save_model(tmp_path / "other", seed=1)
    config = store / "cedit.toml"
    config.write_text(config.read_text().replace(str(model), str(tmp_path / "other")))
    for arguments in (("ask", "x"), ("apply", stream), ("verify",), ("rollback", "base")):
        assert cedit(*arguments).code == 21


def test_a_damaged_patch(cedit: Cedit, store: Path, stream: Path) -> None:
    cedit("apply", stream)
    blob = next((store / "patches").rglob("*.safetensors"))
    damaged = bytearray(blob.read_bytes())
    damaged[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(damaged)
    ran = cedit("verify", "--json")
    assert ran.code == 20
    assert ran.last["ok"] is False
    assert any(blob.stem in problem["object"] for problem in ran.last["problems"])
    assert cedit("ask", "x").code == 20
    assert cedit("replay").code == 20


def test_a_revision_that_does_not_exist_is_a_usage_error(cedit: Cedit, store: Path) -> None:
    ran = cedit("show", "nothing-like-it")
    assert ran.code == 2
    assert "cedit log" in ran.err


@pytest.mark.parametrize("arguments", [("--nonsense",), ("nonsense",), ("apply",), ()])
def test_a_wrong_command_line_is_a_usage_error(cedit: Cedit, arguments: tuple[str, ...]) -> None:
    assert cedit(*arguments).code == 2


def test_a_second_store_is_not_made_over_the_first(cedit: Cedit, store: Path, model: Path) -> None:
    ran = cedit("init", store, "--model", model)
    assert ran.code == 1
    assert "there is a store already" in ran.err


def test_a_folder_that_is_no_model_is_named(cedit: Cedit, tmp_path: Path) -> None:
    ran = cedit("init", tmp_path / "new", "--model", tmp_path)
    assert ran.code == 1
    assert "not a model directory" in ran.err


def test_what_nobody_foresaw_is_called_a_bug_in_one_line(
    cedit: Cedit, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("out of\ncheese")

    monkeypatch.setattr(cli.commands.status, "find_store", broken)
    ran = cedit("status")
    assert ran.code == 1
    assert ran.err.startswith(r"cedit: RuntimeError: out of\ncheese: this is a bug")
    assert ran.err.count("\n") == 1
    monkeypatch.setenv("CEDIT_TRACEBACK", "1")
    assert "Traceback" in cedit("status").err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "cedit: memory ran out: it takes"),
        (OSError(12, "Cannot allocate memory"), "cedit: memory ran out ([Errno 12] Cannot"),
        (torch.OutOfMemoryError("CUDA out of memory."), "cedit: memory ran out (CUDA out of"),
    ],
)
def test_a_shortage_of_memory_is_no_bug(
    cedit: Cedit, store: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def starved(_: object) -> None:
        raise error

    monkeypatch.setattr(cli.commands.status, "find_store", starved)
    ran = cedit("status")
    assert ran.code == 1
    assert ran.err.startswith(said) and "bug" not in ran.err
    assert ran.err.count("\n") == 1


def test_an_interruption_outside_of_a_run(
    cedit: Cedit, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.commands.status, "find_store", interrupted)
    assert cedit("status").code == 130


@pytest.mark.parametrize("arguments", [("log",), ("log", "--json"), ("--help",)])
def test_a_reader_that_goes_away_is_no_error_to_speak_of(
    start: Start, store: Path, arguments: tuple[str, ...]
) -> None:
    child = start(*arguments)
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait(timeout=30) == 141
    assert child.stderr is not None
    assert child.stderr.read() == ""


def test_a_prompt_that_is_no_text_is_said_to_be_none(cedit: Cedit, store: Path) -> None:
    ran = cedit("ask", os.fsdecode(b"\xff\xfe"))
    assert ran.code == 1
    assert "UTF-8" in ran.err and "bug" not in ran.err
    assert ran.err.count("\n") == 1
