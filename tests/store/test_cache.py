"""What is cached comes back as it was put, or is missed; it is never wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from store import Store, StoreError, durable
from store.cache import Cache
from store.errors import IntegrityError
from store.lock import WriterLock

NAME = "statistics/block-0"


def files(store):
    return sorted(path for path in store.cache.rglob("*") if path.is_file())


def test_tensors_come_back_with_their_meta_and_the_digest_of_their_file(store):
    tensors = {"a": torch.arange(6, dtype=torch.float64).reshape(2, 3)}
    digest = store.put_cached(NAME, tensors, {"count": 3})
    found = store.cached(NAME)
    assert torch.equal(found.tensors["a"], tensors["a"])
    assert found.meta == {"count": 3}
    assert found.digest == digest == found.path.stem
    assert found.path.is_relative_to(store.cache / "statistics")


def test_a_set_takes_the_place_of_the_one_before_and_leaves_nothing_of_it(store):
    store.put_cached(NAME, {"a": torch.zeros(3)}, {})
    store.put_cached(NAME, {"a": torch.ones(3)}, {})
    assert torch.equal(store.cached(NAME).tensors["a"], torch.ones(3))
    assert len(files(store)) == 2
    store.put_cached(NAME, {"a": torch.ones(3)}, {})
    assert torch.equal(store.cached(NAME).tensors["a"], torch.ones(3))


def test_what_is_dropped_or_never_was_is_none(store):
    store.put_cached(NAME, {"a": torch.zeros(3)}, {})
    store.drop_cached(NAME)
    store.drop_cached(NAME)
    assert store.cached(NAME) is None
    assert files(store) == []


def test_what_is_dropped_does_not_come_back_after_a_power_loss(store, monkeypatch):
    store.put_cached(NAME, {"a": torch.zeros(3)}, {})
    folders = {path.parent for path in files(store)}
    synced = []
    monkeypatch.setattr(durable, "_sync_folder", synced.append)
    store.drop_cached(NAME)
    assert set(synced) == folders


def test_a_set_that_may_not_be_looked_at_is_named(store, monkeypatch):
    store.put_cached(NAME, {"a": torch.zeros(3)}, {})
    real = Path.exists

    def exists(path):
        if path.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "exists", exists)
    with pytest.raises(StoreError, match=r"\.safetensors can't be read: Permission denied"):
        Cache(store.cache).loose()


def test_readers_cache_too_while_another_writes(store, path):
    store.close()
    lock = WriterLock.acquire(path / "lock")
    with Store.open(path) as reader:
        reader.put_cached(NAME, {"a": torch.ones(1)}, {})
        assert torch.equal(reader.cached(NAME).tensors["a"], torch.ones(1))
    lock.release()


@pytest.mark.parametrize(
    "name", ["../head/x", "statistics/../x", "/etc/passwd", "x", "a/b/c", "a/B", "a/", "", "a/b\n"]
)
def test_a_name_stays_inside_the_cache(store, name):
    for use in (store.cached, store.drop_cached, lambda n: store.put_cached(n, {}, {})):
        with pytest.raises(StoreError, match="can't name"):
            use(name)


def test_not_a_number_is_refused(store):
    with pytest.raises(StoreError, match="NaN"):
        store.put_cached(NAME, {"a": torch.tensor([float("nan")])}, {})
    assert store.cached(NAME) is None


@pytest.mark.parametrize("end", [".json", ".safetensors"])
def test_damage_is_named_and_can_be_written_over_or_dropped(store, end):
    digest = store.put_cached(NAME, {"a": torch.ones(3)}, {})
    damaged = next(path for path in files(store) if path.suffix == end)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"#")
    with pytest.raises(IntegrityError, match=damaged.name):
        store.cached(NAME)
    assert store.put_cached(NAME, {"a": torch.ones(3)}, {}) == digest
    assert torch.equal(store.cached(NAME).tensors["a"], torch.ones(3))
    damaged.write_bytes(b"{")
    store.drop_cached(NAME)
    assert store.cached(NAME) is None


def test_a_cached_file_that_is_gone_is_named(store):
    store.put_cached(NAME, {"a": torch.ones(3)}, {})
    store.cached(NAME).path.unlink()
    with pytest.raises(IntegrityError, match="can't be read"):
        store.cached(NAME)
