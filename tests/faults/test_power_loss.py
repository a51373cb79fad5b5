"""Whatever a power loss leaves of a disk, what was acknowledged is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faults import processes, upkeep
from benchmarks.faults.disk import Disk
from benchmarks.faults.findings import Finding
from benchmarks.faults.power_loss import CONTROLS, examine, upkept
from benchmarks.faults.recording import Event, Span, read_log


def test_every_form_of_power_loss_keeps_its_word(short_form):
    short_form("power-loss")


def test_a_log_is_read_across_threads():
    hexed = "".join(f"\\x{byte:02x}" for byte in b"/s/a")
    log = f"""1 openat(AT_FDCWD, "{hexed}", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0666) = 5
1 write(5, "\\x61\\x62" <unfinished ...>
2 fsync(9 <unfinished ...>
1 <... write resumed>, 2) = 2
2 <... fsync resumed>) = 0
1 fsync(5) = 0
1 close(5) = 0"""
    kinds = [(event.kind, event.path, event.data) for event in read_log(log, Path("/s"))]
    assert kinds == [
        ("create", Path("/s/a"), b""),
        ("write", Path("/s/a"), b"ab"),
        ("sync", Path("/s/a"), b""),
    ]


def test_a_log_has_what_is_copied_and_what_is_named_below_an_open_folder():
    def hexed(text: str) -> str:
        return "".join(f"\\x{byte:02x}" for byte in text.encode())

    log = f"""1 openat(AT_FDCWD, "{hexed("/s/a")}", O_RDONLY|O_CLOEXEC) = 4
1 openat(AT_FDCWD, "{hexed("/s/b")}", O_WRONLY|O_CREAT|O_CLOEXEC, 0666) = 5
1 sendfile(5, 4, [2] => [5], 8388608) = 3
1 sendfile(5, 4, [5] => [5], 8388608) = 0
1 openat(AT_FDCWD, "{hexed("/s")}", O_RDONLY|O_DIRECTORY) = 6
1 openat(6, "{hexed("c")}", O_RDONLY|O_DIRECTORY) = 7
1 unlinkat(7, "{hexed("d")}", 0) = 0
1 unlinkat(6, "{hexed("c")}", AT_REMOVEDIR) = 0"""
    create, copy, *removed = read_log(log, Path("/s"))
    assert (create.kind, create.path) == ("create", Path("/s/b"))
    assert (copy.kind, copy.path, copy.offset) == ("copy", Path("/s/b"), 0)
    assert copy.source == Span(Path("/s/a"), 2, 3)
    assert [(e.kind, e.path) for e in removed] == [
        ("remove", Path("/s/c/d")),
        ("remove", Path("/s/c")),
    ]


def test_a_copy_has_what_its_source_had_for_its_reader_and_may_be_lost(draw):
    copy = Event("copy", Path("/s/b"), 4, 5, source=Span(Path("/s/a"), 512, 512))
    events = [CREATE, WRITE, replace(CREATE, path=Path("/s/b")), copy, SAID]
    images = Disk(Path("/s"), {}, events).images(draw, 200)
    found = {image.tree.get("b") for image in images if image.said}
    assert {None, b"", b"y" * 512} <= found and b"x" * 512 not in found


@pytest.mark.parametrize("one", upkeep.ALL, ids=[one.name for one in upkeep.ALL])
def test_upkeep_without_fsync_loses_something(one, tmp_path):
    if (why := processes.why_no_strace()) is not None:
        pytest.skip(why)
    finding = Finding(one.name)
    examine(upkept(tmp_path, one, CONTROLS["patches without fsync"]), 60, 0, finding)
    assert finding.violations > 0


@pytest.fixture
def contents(draw):
    def of(*events: Event) -> set[bytes | None]:
        disk = Disk(Path("/s"), {}, [*events, SAID])
        return {image.tree.get("a") for image in disk.images(draw, 200) if image.said}

    return of


CREATE = Event("create", Path("/s/a"), 0, 1)
WRITE = Event("write", Path("/s/a"), 2, 3, data=b"x" * 512 + b"y" * 512)
SYNC = Event("sync", Path("/s/a"), 4, 5)
SYNC_FOLDER = Event("sync", Path("/s"), 6, 7)
SAID = Event("said", None, 8, 9, data=b"done")


def test_what_was_not_synced_may_be_lost_or_torn(contents):
    found = contents(CREATE, WRITE)
    assert {None, b"", WRITE.data, b"x" * 512, bytes(512) + b"y" * 512, bytes(1024)} <= found


def test_a_synced_file_is_whole_but_its_name_may_be_lost(contents):
    assert contents(CREATE, WRITE, SYNC) == {None, WRITE.data}


def test_what_was_synced_with_its_folder_is_there(contents):
    assert contents(CREATE, WRITE, SYNC, SYNC_FOLDER) == {WRITE.data}
