"""Snapshots make standing at a state quick, and change nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from continual.history.replaying import rebuild, verify
from continual.patches.low_rank import Factors
from continual.patches.weight_sums import WeightSums
from continual.session import Session, open_session
from continual.snapshots import Snapshot
from store import BlobRef, Revision
from store.errors import StoreFull
from tests.continual.test_mixed_history import (
    apply,
    apply_mixture,
    corrections,
    folder,  # noqa: F401
    fresh,  # noqa: F401
    is_exact,
)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.store.PATCHES", 2)


@pytest.fixture
def history(fresh: Session) -> Path:  # noqa: F811
    """The whole mixture of editors, closed."""
    apply_mixture(fresh)
    fresh.close()
    return fresh.store.path


def blobs(path: Path) -> list[Path]:
    return sorted((path / "snapshots").rglob("*.safetensors"))


def segments(session: Session) -> list[Snapshot | None]:
    layers = session.store.layers("head")
    return [session.states.snapshot(segment) for segment in session.store.segments(layers)]


def state(session: Session) -> tuple[str, str, list[torch.Tensor]]:
    """The names of a state, and every tensor of it."""
    edited = session.edited
    bank, weight = session.site.bank, edited.weight(0)
    tensors = [bank.keys, bank.bias, bank.values, weight.sum, weight.keys]
    return edited.fingerprint, edited.rows_state, [tensor.clone() for tensor in tensors]


def is_same(one: tuple[str, str, list[torch.Tensor]], other: object) -> bool:
    names, tensors = other[:2], other[2]  # type: ignore[index]
    return one[:2] == names and all(map(torch.equal, one[2], tensors))


def test_a_run_leaves_a_snapshot_of_every_full_segment(history):
    with open_session(history, writable=False) as session:
        found = segments(session)
    assert len(found) == 5 and None not in found  # ten patches
    assert verify(history) == []


@pytest.mark.parametrize("keeps_sums", [False, True])
def test_a_run_that_keeps_columns_and_one_that_keeps_sums_come_to_the_same_bits(
    history, monkeypatch, keeps_sums
):
    with open_session(history, writable=False) as session:
        truth = [state_at(session, revision) for revision in session.store.revisions()]
    for file in (history / "snapshots").rglob("*.*"):
        file.unlink()
    monkeypatch.setattr(Factors, "is_smaller_than_dense", not keeps_sums)
    open_session(history).close()
    with open_session(history, writable=False) as session:
        kinds = {type(part) for snapshot in segments(session) for part in snapshot.parts}
        assert (WeightSums in kinds) is keeps_sums
        for revision, wanted in zip(session.store.revisions(), truth, strict=True):
            assert is_same(state_at(session, revision), wanted)
        session.stand_at("head")
        session.edited.take_off(1)  # to the end of the last segment
        assert session.edited.fingerprint == segments(session)[-1].fingerprint
    assert verify(history) == []


def test_wide_factors_take_more_room_than_the_matrix():
    assert Factors(torch.ones(8, 3), torch.ones(3, 8)).is_smaller_than_dense
    assert not Factors(torch.ones(8, 4), torch.ones(4, 8)).is_smaller_than_dense


def test_a_state_has_the_same_bits_with_them_without_them_and_with_some(history):
    with open_session(history, writable=False) as session:
        revisions = list(session.store.revisions())
        with_all = [state_at(session, revision) for revision in revisions]
    for pointer in sorted((history / "snapshots").rglob("*.json"))[1:3]:
        pointer.unlink()
    with open_session(history, writable=False) as session:
        with_some = [state_at(session, revision) for revision in revisions]
    for pointer in (history / "snapshots").rglob("*.json"):
        pointer.unlink()
    with open_session(history, writable=False) as session:
        assert segments(session) == [None] * 5
        without = [state_at(session, revision) for revision in revisions]
    for one, some, other in zip(with_all, with_some, without, strict=True):
        assert is_same(one, other) and is_same(some, other)


def state_at(session: Session, revision: Revision) -> tuple[str, str, list[torch.Tensor]]:
    session.stand_at(revision)
    return state(session)


def test_readers_make_none_and_the_next_writer_makes_them_again(history):
    for file in (history / "snapshots").rglob("*.*"):
        file.unlink()
    open_session(history, writable=False).close()
    assert blobs(history) == []
    open_session(history).close()
    assert len(blobs(history)) == 5


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "pointer"])
def test_a_damaged_one_is_named_passed_over_and_made_again(history, damage):
    with open_session(history, writable=False) as session:
        fingerprint = session.edited.fingerprint
    blob = blobs(history)[2]
    data = bytearray(blob.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
        blob.write_bytes(data)
    elif damage == "cut":
        blob.write_bytes(data[:-5])
    elif damage == "gone":
        blob.unlink()
    else:
        next((history / "snapshots").rglob("*.json")).write_text("{}")
    problems = verify(history)
    assert problems and all(p.harmless and p.object.startswith("snapshots/") for p in problems)
    with open_session(history) as session:
        assert session.edited.fingerprint == fingerprint
        assert None not in segments(session)


def test_one_that_lies_is_named(history):
    """Its digest is in order, its neurons are others."""
    with open_session(history) as session:
        layers = session.store.layers("head")
        first = session.store.segments(layers)[0]
        truth = session.states.snapshot(first)
        tensors, meta = truth.to_file()
        session.store.snapshots.put(first.name, {n: t + 1 for n, t in tensors.items()}, meta)
    (problem,) = verify(history)
    assert problem.object == f"snapshots/{first.name}.json"
    assert not problem.harmless


def test_one_that_leads_to_another_state_is_named_and_passed_over(history):
    with open_session(history) as session:
        fingerprint = session.edited.fingerprint
        last = session.store.segments(session.store.layers("head"))[-1]
        tensors, meta = session.states.snapshot(last).to_file()
        session.store.snapshots.put(last.name, tensors, {**meta, "fingerprint": "0" * 64})
    (problem,) = verify(history)
    assert problem.object == f"snapshots/{last.name}.json"
    with open_session(history) as session:
        assert session.edited.fingerprint == fingerprint
    assert verify(history) == []  # the writer has made it anew


def test_after_a_revert_the_segments_before_it_are_shared(history):
    with open_session(history) as session:
        before = session.store.segments(session.store.layers("head"))
        session.revert(corrections(7, 8)[0].id)  # of the fourth patch
        after = session.store.segments(session.store.layers("head"))
        assert [s.name for s in before[:1]] == [s.name for s in after[:1]]
        assert not {s.name for s in before[1:]} & {s.name for s in after[1:]}
        assert is_exact(session)
        truth = state(session)
    open_session(history).close()
    with open_session(history) as session:
        assert None not in segments(session)
        assert is_same(state(session), truth)


def test_a_snapshot_that_cannot_be_written_stops_nothing(fresh, monkeypatch):  # noqa: F811
    def full(*_: object) -> str:
        raise StoreFull(Path("snapshots"), "no space left on device")

    monkeypatch.setattr(fresh.store.snapshots, "put", full)
    steps = apply(fresh, corrections(0, 4), "tpatcher", batch_size=1)
    assert fresh.store.head.id == steps[-1].revision.id
    assert blobs(fresh.store.path) == []


def test_a_replay_of_the_end_starts_from_a_snapshot_and_one_from_base_does_not(
    history, monkeypatch
):
    with open_session(history, writable=False, at="base") as session:
        revisions = session.store.lineage("head")
        read: list[str] = []
        patch = session.store.patch

        def counted(ref: BlobRef) -> object:
            read.append(ref.sha256)
            return patch(ref)

        monkeypatch.setattr(session.store, "patch", counted)
        assert all(m.is_same for m in rebuild(session, revisions[-2:], from_snapshots=True))
        few = len(read)
        assert all(m.is_same for m in rebuild(session, revisions[-2:]))
        assert few <= 4 < 10 <= len(read) - few
