"""Repair heals what can be healed, sets aside what cannot, and says before what is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from store import Draft, Store, StoreError, canonical
from store.check import verify
from store.errors import IntegrityError
from store.history import subject_digest
from store.journal import Put, seq_key, text_key
from store.repair import RepairPlan, carry_out, plan


def repaired(store: Store) -> RepairPlan:
    """What was planned, once it is done."""
    chosen = plan(store)
    carry_out(store, chosen)
    return chosen


def forge(store: Store, *changes: Put) -> None:
    store.journal.write(list(changes))


def told(path: Path) -> dict[str, object]:
    """All that a store says."""
    with Store.open(path) as opened:
        assert [p for p in verify(opened) if not p.harmless] == []
        return {
            "ids": [revision.id for revision in opened.revisions()],
            "head": opened.head_id,
            "tags": opened.tags(),
            "streams": opened.streams(),
            "ledger": [opened.ledger(seq) for seq in range(opened.length)],
            "subjects": [opened.requests_about(f"subject-{n}") for n in range(2)],
        }


def test_a_sound_store_needs_nothing(store, grow):
    grow(store, 3)
    chosen = plan(store)
    assert chosen.remedies == () and chosen.lost == () and chosen.journal is None


@pytest.mark.parametrize(
    "damage",
    ["ids missing", "ids wrong", "subject missing", "subject strange", "head missing", "head lost"],
)
def test_what_follows_from_the_entries_is_made_anew(store, path, grow, damage):
    grow(store, 5)
    store.tag("v1", "@2")
    store.record_ledger(3, {"SR": 0.75})
    identity = store.revision("@2").id.encode()
    key, payload = next(store.journal.entries("subjects"))
    forge(
        store,
        {
            "ids missing": Put("ids", identity, None),
            "ids wrong": Put("ids", identity, b"4"),
            "subject missing": Put("subjects", key, None),
            "subject strange": Put("subjects", subject_digest("x") + key[32:], payload),
            "head missing": Put("refs", text_key("head"), None),
            "head lost": Put("refs", text_key("head"), canonical.dumps("0" * 64)),
        }[damage],
    )
    assert verify(store)
    head = store.revision("@5").id
    chosen = repaired(store)
    assert chosen.loses == []
    found = told(path)
    assert found["head"] == head
    assert found["subjects"] == [
        ["request-2", "request-4"],
        ["request-1", "request-3", "request-5"],
    ]
    assert found["tags"] == {"v1": found["ids"][2]}
    assert found["ledger"][3] == {"SR": 0.75}
    assert found["streams"] == {"news": {"position": 5}}


def test_head_stays_where_a_rollback_put_it(store, path, grow):
    grow(store, 3)
    target = store.revision("@1")
    store.commit(Draft("rollback", target.id, target.fingerprint, head=target.id))
    forge(store, Put("refs", text_key("head"), None))
    repaired(store)
    assert told(path)["head"] == target.id


@pytest.mark.parametrize("damage", ["revision", "request"])
def test_a_broken_history_ends_where_it_can_be_read(store, path, grow, damage):
    grow(store, 5)
    store.tag("early", "@1")
    store.tag("late", "@4")
    before = [revision.id for revision in store.revisions()]
    bad = Put("revisions", seq_key(3), b"{}")
    if damage == "request":
        bad = Put("requests", text_key("request-3"), b"{")
    forge(store, bad)
    chosen = repaired(store)
    assert any("3 revisions from @3 on" in loss for loss in chosen.loses)
    assert any("tag late" in loss for loss in chosen.loses)
    found = told(path)
    assert found["ids"] == before[:3] and found["head"] == before[2]
    assert found["tags"] == {"early": before[1]}
    kept = path / "damaged" / "1" / "data.mdb"
    assert kept.stat().st_size > 0
    with Store.open(path, writable=True) as opened:
        grow(opened, 1)  # and goes on


def test_a_stream_goes_back_with_a_history_that_is_cut(store, path):
    for n in (1, 2):
        state = {"news": {"position": n}}
        store.commit(Draft("edit", store.head.id, f"f{n}", {"streams": state}, streams=state))
    forge(store, Put("revisions", seq_key(2), b"{}"))
    repaired(store)
    assert told(path)["streams"] == {"news": {"position": 1}}


def test_what_is_known_of_one_revision_may_be_lost_alone(store, path, grow):
    grow(store, 3)
    forge(store, Put("ledger", seq_key(1), b"["), Put("streams", text_key("news"), b"[]"))
    chosen = repaired(store)
    assert set(chosen.loses) == {"the metrics of that revision", "a stream's position"}
    assert told(path)["streams"] == {}


def test_folders_leftovers_cache_and_snapshots_are_healed_without_loss(store, path, grow):
    grow(store, 1, tensors={"keys": torch.ones(2, 2)})
    store.put_cached("statistics/block-0", {"a": torch.ones(2)}, {})
    store.snapshots.put("ab/cd", {"a": torch.ones(2)}, {})
    for blob in (*store.cache.rglob("*.safetensors"), *store.snapshots.root.rglob("*.safetensors")):
        blob.write_bytes(b"nonsense")
    store.blobs.put({"stray": torch.ones(1)}, {})
    (path / "patches" / ".tmp-01").write_bytes(b"half")
    assert len(verify(store)) == 4
    assert repaired(store).loses == []
    with Store.open(path, writable=True) as opened:
        assert verify(opened) == []
        shutil.rmtree(path / "snapshots")
        assert {r.object for r in plan(opened).remedies} == {"snapshots"}
        carry_out(opened, plan(opened))
    assert (path / "snapshots").is_dir()


def test_bad_lines_of_the_quarantine_are_moved(store, path):
    (path / "quarantine.jsonl").write_bytes(b'{"stream":"a"}\nnonsense\n{"stream":"b"}\n{"torn')
    repaired(store)
    assert (path / "quarantine.jsonl").read_bytes() == b'{"stream":"a"}\n{"stream":"b"}\n'
    assert (path / "damaged" / "1" / "quarantine.jsonl").read_bytes() == b'nonsense\n{"torn'


def test_a_patch_that_cannot_be_read_is_set_aside_for_the_engine_to_do_without(store, path, grow):
    (revision,) = grow(store, 1, tensors={"keys": torch.ones(2, 2)})
    blob = store.blobs.path(revision.patch.sha256)
    blob.write_bytes(b"nonsense")
    chosen = repaired(store)
    assert chosen.lost == (revision.patch,)
    assert (path / "damaged" / "1" / blob.name).read_bytes() == b"nonsense"
    with Store.open(path, writable=True) as opened:
        body = {"lost": [revision.patch.sha256]}
        replaces = {revision.id: None}
        opened.commit(Draft("repair", revision.id, "f", body, replaces=replaces))
        assert [p.harmless for p in verify(opened)] == [True]
        assert plan(opened).lost == ()


def test_without_a_base_there_is_nothing_to_heal(store, grow):
    grow(store, 1)
    forge(store, Put("revisions", seq_key(0), b"{}"))
    with pytest.raises(IntegrityError, match="cedit import"):
        plan(store)


@pytest.mark.parametrize("at", ["copy_durably", "move_durably", "remove_durably"])
def test_a_repair_that_breaks_off_is_planned_again(store, path, grow, monkeypatch, at):
    grow(store, 4)
    forge(store, Put("refs", text_key("head"), None), Put("revisions", seq_key(3), b"{}"))
    chosen = plan(store)

    def fail(*_: object) -> None:
        raise RuntimeError("killed, say")

    with monkeypatch.context() as patched:
        patched.setattr(f"store.durable.{at}", fail)
        with pytest.raises(RuntimeError):
            carry_out(store, chosen)
    store.close()
    with Store.open(path, writable=True) as opened:
        repaired(opened)
    assert len(told(path)["ids"]) == 3


def test_a_patch_that_may_not_be_read_is_not_given_up(store, grow, monkeypatch):
    (revision,) = grow(store, 1, tensors={"keys": torch.ones(2, 2)})
    real = Path.read_bytes

    def read_bytes(file: Path) -> bytes:
        if file.stem == revision.patch.sha256:
            raise PermissionError(13, "Permission denied", str(file))
        return real(file)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(StoreError, match="check its owner and permissions"):
        plan(store)
