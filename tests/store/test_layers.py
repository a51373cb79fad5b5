"""What a state is made of, where later revisions put other patches in place of earlier ones."""

from __future__ import annotations

import pytest
import torch

from store import Draft, Replacement, Revision, Store, StoreError, check
from store.history import text_key
from store.journal import Put, seq_key
from store.revisions import payload_of


def patched(store: Store, value: float) -> Revision:
    tensors = {"0.keys": torch.full((1, 2), value)}
    return store.commit(Draft("edit", store.head.id, f"f{store.length}", tensors=tensors))


def without(store: Store, *gone: Revision) -> Revision:
    replaces = dict.fromkeys(revision.id for revision in gone)
    return store.commit(Draft("revert", store.head.id, f"f{store.length}", replaces=replaces))


def values(store: Store, name: str = "head") -> list[float]:
    refs = [layer.patch for layer in store.layers(name)]
    return [float(store.patch(ref)[0]["0.keys"][0, 0]) for ref in refs if ref is not None]


def waypoints(store: Store, name: str = "head") -> list[int]:
    return [layer.revision.seq for layer in store.layers(name) if layer.is_waypoint]


def test_without_replacements_every_revision_is_a_waypoint(store):
    for value in (1.0, 2.0, 3.0):
        patched(store, value)
    assert values(store) == [1.0, 2.0, 3.0]
    assert waypoints(store) == [0, 1, 2, 3]


def test_a_patch_that_is_replaced_is_gone_from_there_on_and_not_before(store):
    first, second, third = (patched(store, value) for value in (1.0, 2.0, 3.0))
    without(store, second)
    patched(store, 4.0)
    assert values(store) == [1.0, 3.0, 4.0]
    assert values(store, third.id) == [1.0, 2.0, 3.0]
    assert waypoints(store) == [0, 1, 4, 5]
    without(store, first)
    assert values(store) == [3.0, 4.0]
    assert waypoints(store) == [0, 6]


def test_another_patch_stands_in_the_old_place(store):
    first, second = patched(store, 1.0), patched(store, 2.0)
    new = Replacement({"0.keys": torch.full((1, 2), 5.0)}, {})
    store.commit(Draft("revert", second.id, "f3", replaces={first.id: new}))
    assert values(store) == [5.0, 2.0]
    without(store, first)  # and can be replaced again
    assert values(store) == [2.0]
    assert check.verify(store) == []


def test_only_the_patches_of_ancestors_can_be_replaced(store):
    first = patched(store, 1.0)
    other = store.commit(Draft("edit", store.base.id, "f2"))
    with pytest.raises(StoreError, match="not among its ancestors"):
        store.commit(Draft("revert", other.id, "f3", replaces={first.id: None}))
    with pytest.raises(StoreError, match="not among its ancestors"):
        store.commit(Draft("revert", other.id, "f3", replaces={"no such": None}))


def test_records_without_replacements_are_spelt_as_before(store):
    draft = Draft("edit", store.head.id, "f1")
    assert b"replaces" not in payload_of(draft, 1, store.head.id, None)


def test_verify_names_a_replacement_of_what_is_no_ancestor(store):
    first = patched(store, 1.0)
    draft = Draft("revert", store.base.id, "f2")
    payload = payload_of(draft, 2, first.id, None, {first.id: None})
    forged = Revision.from_payload(payload)
    store.journal.write(
        [
            Put("revisions", seq_key(2), payload),
            Put("ids", forged.id.encode(), b"2"),
            Put("refs", text_key("head"), f'"{forged.id}"'.encode()),
        ]
    )
    (problem,) = check.verify(store)
    assert problem.object == "journal/revisions/2"
    assert "no ancestor" in problem.problem


def test_verify_reads_the_blobs_that_stand_in(store):
    first = patched(store, 1.0)
    new = Replacement({"0.keys": torch.full((1, 2), 5.0)}, {})
    revert = store.commit(Draft("revert", first.id, "f2", replaces={first.id: new}))
    (ref,) = revert.blobs
    store.blobs.path(ref.sha256).unlink()
    (problem,) = check.verify(store)
    assert ref.sha256 in problem.object and "can't be read" in problem.problem


def test_a_long_lineage_is_whole_across_forks(store):
    for _ in range(300):
        store.commit(Draft("edit", store.head.id, f"f{store.length}"))
    fork = store.revision("@270")
    store.commit(Draft("edit", fork.id, "other"))
    for _ in range(5):
        store.commit(Draft("edit", store.head.id, f"f{store.length}"))
    assert [r.seq for r in store.lineage("head")] == [*range(271), *range(301, 307)]


def test_a_damaged_entry_that_is_no_ancestor_does_not_stand_in_the_way(store):
    for _ in range(4):
        store.commit(Draft("edit", store.head.id, f"f{store.length}"))
    head = store.commit(Draft("edit", store.revision("@2").id, "other"))
    store.journal.write([Put("revisions", seq_key(3), b"{}")])
    assert [r.seq for r in store.lineage(head)] == [0, 1, 2, 5]
