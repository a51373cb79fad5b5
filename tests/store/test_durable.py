"""Bytes that are said to be on the disk are there; others leave nothing behind."""

from __future__ import annotations

import errno
import os

import pytest

from store import durable
from store.errors import StorageFault, StoreError, StoreExists, StoreFull


def test_bytes_land_whole_in_new_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    durable.write_durably(path, b"first")
    durable.write_durably(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_new_folders_are_synced_into_their_parents(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "_sync_folder", synced.append)
    durable.make_folder_durably(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    for place in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(StoreExists, match="a: is no folder"):
            durable.make_folder_durably(place)


def test_the_file_is_synced_before_it_is_named_and_the_folder_after(tmp_path, monkeypatch):
    order = []
    real_sync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda d: (order.append("fsync"), real_sync(d)))
    monkeypatch.setattr(os, "rename", lambda *a: (order.append("rename"), real_rename(*a)))
    durable.write_durably(tmp_path / "file", b"x")
    assert order == ["fsync", "rename", "fsync"]


def test_a_file_that_nothing_counts_on_yet_is_named_first_and_then_synced(tmp_path, monkeypatch):
    order = []
    real_sync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda d: (order.append("fsync"), real_sync(d)))
    monkeypatch.setattr(os, "rename", lambda *a: (order.append("rename"), real_rename(*a)))
    durable.place_durably(tmp_path / "a" / "file", b"x")
    assert order == ["fsync", "rename", "fsync", "fsync"]  # the new folder's own is the first
    assert (tmp_path / "a" / "file").read_bytes() == b"x"


def test_a_file_that_could_not_be_synced_does_not_stay(tmp_path, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageFault):
        durable.place_durably(tmp_path / "file", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EFBIG, StoreFull),
        (errno.EIO, StorageFault),
        (errno.EROFS, StoreError),
    ],
)
def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch, code, kind):
    path = tmp_path / "file"
    durable.write_durably(path, b"before")

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind, match="file") as caught:
        durable.write_durably(path, b"after")
    assert type(caught.value) is kind
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_appending_cuts_off_a_torn_last_line(tmp_path):
    path = tmp_path / "lines"
    durable.append_durably(path, b"one\n")
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    durable.append_durably(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_file_of_one_torn_line_is_emptied_first(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"torn")
    durable.append_durably(path, b"one\n")
    assert path.read_bytes() == b"one\n"


def test_a_failed_append_leaves_the_lines_that_were_there(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    durable.append_durably(path, b"one\n")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreFull):
        durable.append_durably(path, b"two\n")
    assert path.read_bytes() == b"one\n"


def test_the_journal_cannot_be_made_for_a_reason_that_has_a_name(tmp_path, monkeypatch):
    import lmdb

    from store.journal import Journal

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lmdb, "open", fail)
    with pytest.raises(StorageFault, match="Input/output error"):
        Journal(tmp_path / "journal", writable=True)


def test_a_copy_is_whole_or_not_there(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"all of it")
    durable.copy_durably(source, target)
    assert target.read_bytes() == b"all of it"
    target.unlink()

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable.os, "fsync", fail)
    with pytest.raises(StorageFault):
        durable.copy_durably(source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_what_is_removed_is_gone_and_gone_already_is_no_error(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"1")
    paths = [tmp_path / "folder" / "file", tmp_path / "folder", tmp_path / "never"]
    durable.remove_durably(paths)
    durable.remove_durably(paths[:1] + paths[2:])
    assert list(tmp_path.iterdir()) == []
