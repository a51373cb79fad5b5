"""The queue: records by name beside the history, durable and all at once."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from store import Store, StoreError, config
from store.archive import export, restore
from store.check import verify
from store.repair import carry_out, plan

WRITER = """
import sys
from pathlib import Path
from store import Store
path, start = Path(sys.argv[1]), int(sys.argv[2])
with Store.open(path, writable=True) as store:
    print("ready", flush=True)
    for number in range(start, start + 100_000):
        item, key = f"item/{number:09}", f"key/{number}"
        store.record_queue({item: {"number": number}, key: {"n": number}})
        print(f"item {number}", flush=True)
"""


def test_records_come_in_the_order_of_their_names(store: Store) -> None:
    assert list(store.queue_entries()) == []
    assert store.queue_entry("item/1") is None
    store.record_queue({f"item/{n}": {"n": n} for n in (3, 1, 2)} | {"key/x": {"item": 1}})
    assert [record["n"] for _, record in store.queue_entries("item/")] == [1, 2, 3]
    store.record_queue({"item/2": None, "item/1": {"n": 10}, "item/9": None})
    assert [record["n"] for _, record in store.queue_entries("item/")] == [10, 3]
    assert store.queue_entry("key/x") == {"item": 1}


def test_a_reader_sees_what_was_written_before_it_came(store: Store, path: Path) -> None:
    store.record_queue({"item/1": {"text": "é"}})
    store.close()
    with Store.open(path) as reader:
        assert list(reader.queue_entries()) == [("item/1", {"text": "é"})]
        with pytest.raises(StoreError, match="reading only"):
            reader.record_queue({"item/1": None})


def test_a_name_that_would_lose_its_order_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="too long"):
        store.record_queue({"item/" + "x" * 600: {}})


def test_many_records_make_the_map_grow(path: Path, store: Store) -> None:
    store.close()
    with Store(path, writable=True, map_size_bytes=1 << 16) as small:
        for n in range(40):
            small.record_queue({f"item/{n:03}": {"text": "x" * 5000}})
        assert len(list(small.queue_entries("item/"))) == 40


def test_an_archive_has_the_queue(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "empty.tar")
    restore(tmp_path / "empty.tar", tmp_path / "other")
    store.record_queue({"item/1": {"state": "pending"}})
    export(store, tmp_path / "full.tar")
    restore(tmp_path / "full.tar", tmp_path / "new")
    with Store.open(tmp_path / "new") as read:
        assert list(read.queue_entries()) == [("item/1", {"state": "pending"})]


def test_a_damaged_record_is_named_and_the_others_are_kept(store: Store, path: Path) -> None:
    store.record_queue({"item/1": {"mark": "spoiltspoilt"}, "item/2": {"mark": "sound"}})
    store.close()
    data = path / "journal" / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"spoiltspoilt", b"spoiltXXXXXX"))
    with Store.open(path, writable=True) as damaged:
        assert [p.object for p in verify(damaged) if not p.harmless] == ["journal/queue/item/1"]
        chosen = plan(damaged)
        assert "a correction that waited" in " ".join(str(r) for r in chosen.remedies)
        carry_out(damaged, chosen)
    with Store.open(path) as repaired:
        assert list(repaired.queue_entries()) == [("item/2", {"mark": "sound"})]


def test_kills_lose_nothing_acknowledged_and_leave_nothing_half_done(
    store: Store, path: Path, python
) -> None:
    store.close()
    draw, start, acknowledged = random.Random(5), 0, 0
    for _ in range(12):
        child = python(WRITER, path, start)
        assert child.stdout.readline() == b"ready\n"
        time.sleep(draw.uniform(0.0, 0.05))
        child.kill()
        lines = child.stdout.read().decode().split("\n")[:-1]
        child.wait()
        acknowledged = start + len(lines)
        with Store.open(path) as reader:
            items = [record["number"] for _, record in reader.queue_entries("item/")]
            keys = [record["n"] for _, record in reader.queue_entries("key/")]
            assert [p for p in verify(reader) if not p.harmless] == []
        assert items == list(range(len(items)))
        assert len(items) - acknowledged in (0, 1)
        assert sorted(keys) == items
        start = len(items)
    assert acknowledged > 12
    assert config.found_format(path) == config.FORMAT
