"""What nothing leads to goes; what anything leads to stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from store import Draft, Replacement, Store, StoreError, check
from store.errors import IntegrityError
from store.gc import WRITING_MAX_S, collect, find
from store.journal import Put, seq_key

OLD = time.time() - 2 * WRITING_MAX_S


def files(store: Store) -> set[str]:
    found = (path for path in store.path.rglob("*") if path.is_file())
    return {path.relative_to(store.path).as_posix() for path in found}


def garbage(store: Store, **options: bool) -> set[str]:
    return {found.path.relative_to(store.path).as_posix() for found in find(store, **options)}


def age(path: Path) -> None:
    os.utime(path, (OLD, OLD))


def patched(store: Store, value: float, parent: str | None = None) -> str:
    tensors = {"keys": torch.full((2, 2), value)}
    draft = Draft("edit", parent or store.head.id, f"f{store.length}", tensors=tensors)
    return store.commit(draft).id


def test_a_store_that_is_as_it_should_be_has_no_garbage(store, grow):
    grow(store, 3, tensors={"keys": torch.ones(2, 2)})
    store.put_cached("statistics/block-0", {"a": torch.ones(2)}, {})
    assert find(store) == []


def test_nothing_that_an_entry_of_the_journal_names_goes(store):
    """Rolled back, reverted, tagged, or put in another's place."""
    first = patched(store, 1.0)
    rolled_back = patched(store, 2.0)
    store.tag("kept", rolled_back)
    store.commit(Draft("rollback", first, "f1", head=first))
    new = Replacement({"keys": torch.full((2, 2), 3.0)}, {})
    store.commit(Draft("revert", first, "f4", replaces={first: new}))
    before = files(store)
    assert len(list(store.blobs.digests())) == 3
    assert find(store) == []
    collect(store, find(store))
    assert files(store) == before
    assert check.verify(store) == []


def test_a_patch_without_a_revision_goes(store):
    patched(store, 1.0)
    before = files(store)
    store.write_ahead({"keys": torch.full((2, 2), 9.0)}, {}).result()
    (found,) = find(store)
    assert (found.why, found.length) == ("no revision uses this patch", found.path.stat().st_size)
    collect(store, [found])
    assert files(store) == before
    assert check.verify(store) == []


def test_what_broke_off_goes_also_where_it_is_a_folder(store):
    (store.path / "patches" / "ab").mkdir(parents=True)
    (store.path / "patches" / "ab" / ".tmp-01").write_bytes(b"half")
    (store.path / ".tmp-journal").mkdir()
    (store.path / ".tmp-journal" / "data.mdb").write_bytes(b"half")
    assert garbage(store) == {"patches/ab/.tmp-01", ".tmp-journal/data.mdb", ".tmp-journal"}
    collect(store, find(store))
    assert not (store.path / ".tmp-journal").exists()
    assert find(store) == []


def test_a_link_that_looks_like_a_leftover_goes_and_not_what_it_leads_to(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"1")
    (store.path / ".tmp-link").symlink_to(outside)
    collect(store, find(store))
    assert not (store.path / ".tmp-link").is_symlink()
    assert (outside / "precious").exists()


def test_what_a_reader_may_be_writing_to_the_cache_stays_for_an_hour(store):
    store.put_cached("statistics/block-0", {"a": torch.ones(2)}, {})
    pointer = store.cache / "statistics" / "block-0.json"
    (blob,) = store.cache.rglob("*.safetensors")
    pointer.unlink()
    temporary = store.cache / "statistics" / ".tmp-01"
    temporary.write_bytes(b"half")
    assert find(store) == []
    age(blob)
    age(temporary)
    assert len(garbage(store)) == 2


def test_the_cache_goes_when_that_is_asked_for(store):
    store.put_cached("statistics/block-0", {"a": torch.ones(2)}, {})
    found = find(store, with_cache=True)
    assert len(found) == 2
    collect(store, found)
    assert store.cached("statistics/block-0") is None
    assert check.verify(store) == []


def test_snapshots_stay_where_head_or_a_tag_passes_them(store):
    store.patches_per_segment = 1
    trunk = patched(store, 1.0)
    branch = patched(store, 2.0)
    for revision in (trunk, branch):
        for segment in store.segments(store.layers(revision)):
            store.snapshots.put(segment.name, {"a": torch.ones(2)}, {})
    store.commit(Draft("rollback", trunk, "f1", head=trunk))
    store.tag("v1", branch)
    assert find(store) == []
    store.tag("v1", trunk)
    assert {Path(name).parts[0] for name in garbage(store)} == {"snapshots"}
    assert len(garbage(store)) == 2
    collect(store, find(store))
    assert len(list(store.snapshots.names())) == 1


def test_a_reader_finds_what_no_writer_can_be_at_and_may_not_collect(store, path):
    patched(store, 1.0)
    store.write_ahead({"keys": torch.full((2, 2), 9.0)}, {}).result()
    (old,) = find(store)
    store.write_ahead({"keys": torch.full((2, 2), 8.0)}, {}).result()
    age(old.path)
    assert len(find(store)) == 2
    store.close()
    with Store.open(path) as reader:
        assert find(reader) == [old]
        with pytest.raises(StoreError, match="reading only"):
            collect(reader, [old])


def test_a_journal_that_cannot_be_read_loses_nothing(store):
    patched(store, 1.0)
    store.journal.write([Put("revisions", seq_key(1), b"{}")])
    with pytest.raises(IntegrityError, match="journal/revisions/1"):
        find(store)
