"""What does not fit is refused before anything of it is written; the map grows by itself."""

from __future__ import annotations

import pytest
import torch

from store import Draft, Replacement, Store
from store.durable import MARGIN_BYTES
from store.errors import StoreFull

MEBIBYTE = 1 << 20


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes are free."""

    def left(count: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": count}))

    return left


def files(store):
    """When each was last written; the lock is wiped on release."""
    kept = (p for p in store.path.rglob("*") if p.is_file() and p.name != "lock")
    return {p: p.stat().st_mtime_ns for p in kept}


def tensors(mebibytes: int) -> dict[str, torch.Tensor]:
    return {"keys": torch.ones(mebibytes, MEBIBYTE // 4)}


def drafts(store: Store, mebibytes: int) -> list[Draft]:
    new = Replacement(tensors(mebibytes), {})
    head = store.head.id
    return [
        Draft("edit", head, "f", tensors=tensors(mebibytes)),
        Draft("revert", head, "f", replaces={head: new}),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_a_commit_that_cannot_fit_is_refused_with_the_sizes_and_nothing_is_written(
    store, path, free, which
):
    draft = drafts(store, 8)[which]
    before = files(store)
    free(8 * MEBIBYTE + MARGIN_BYTES - 1)
    with pytest.raises(StoreFull, match=r"8,388,608 bytes and a margin .* 9,437,183 are free"):
        store.commit(draft)
    assert files(store) == before
    free(8 * MEBIBYTE + MARGIN_BYTES)
    with Store.open(path, writable=True) as again:
        again.commit(drafts(again, 8)[which])
        assert again.length == 2


def test_a_patch_written_ahead_is_asked_for_too(store, free):
    before = files(store)
    free(MEBIBYTE)
    with pytest.raises(StoreFull, match="are needed"):
        store.write_ahead(tensors(4), {})
    assert files(store) == before


def test_without_room_for_the_margin_not_even_a_record_is_begun(store, free):
    free(MARGIN_BYTES - 1)
    with pytest.raises(StoreFull):
        store.commit(Draft("edit", store.head.id, "f"))


def test_the_map_grows_by_itself_over_many_commits(store, path, grow):
    store.close()
    with Store(path, writable=True, map_size_bytes=128 << 10) as small:
        for _ in range(10):
            grow(small, 30)
        assert small.length == 301
        info = small.journal._live().info()
        assert info["map_size"] > 128 << 10
    with Store.open(path) as reader:
        assert [r.seq for r in reader.revisions()] == list(range(301))
