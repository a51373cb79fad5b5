"""Whatever a power loss leaves of a disk, what was acknowledged is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.disk import Disk
from benchmarks.faults.recording import Event, read_log


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
