"""Rebuilding: every revision's state made again from base, and its fingerprint compared.

Knows in which order patches go on; leaves checking the store's own records to `store.check`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from continual.history.repairing import whole_revisions
from continual.open_store import OpenStore
from continual.snapshots import Gathered, Snapshot
from store import Layer, Revision, Segment
from store.check import Problem, verify_path


@dataclass(frozen=True)
class Rebuilt:
    """A revision, and the fingerprint of the model rebuilt from its patches."""

    revision: Revision
    fingerprint: str

    @property
    def is_same(self) -> bool:
        """True if the model is bit for bit the same as when the revision was made."""
        return self.fingerprint == self.revision.fingerprint


def rebuild(
    opened: OpenStore, revisions: Iterable[Revision], *, from_snapshots: bool = False
) -> Iterator[Rebuilt]:
    """Put the model at each revision in turn, from base; the model is left at the last of them.

    Revisions that follow one another cost one patch each. With `from_snapshots` the state before
    the first of them is built from snapshots. Raises IntegrityError for a patch that cannot be
    read.
    """
    edited = opened.edited
    state_id: str | None = None  # the revision whose state the model is in
    edited.take_off(0)
    for revision in revisions:
        if revision.parent != state_id or revision.replaces:
            layers = opened.store.layers(revision)[:-1]
            if from_snapshots:
                opened.states.build(layers)
            else:
                _build(opened, layers)
        edited.put(opened.patches(revision.patch))
        edited.settle()
        state_id = revision.id
        yield Rebuilt(revision, edited.fingerprint)


def _build(opened: OpenStore, layers: Iterable[Layer]) -> None:
    """Build a state from base, patch by patch."""
    opened.edited.take_off(0)
    for layer in layers:
        opened.edited.put(opened.patches(layer.patch))
        opened.edited.settle()


def verify(path: Path) -> list[Problem]:
    """Return the store's own problems. If none of these does harm, rebuild every state and add the
    fingerprints and the snapshots that differ from their patches' result.

    Raises NoStore, FormatVersionError, WrongBaseModel.
    """
    problems = verify_path(path)
    if not all(problem.harmless for problem in problems):
        return problems
    with OpenStore.open(path, writable=False, at="base") as opened:
        states = list(rebuild(opened, whole_revisions(opened)))
        problems += [mismatch(state) for state in states if not state.is_same]
        return problems + list(wrong_snapshots(opened))


def mismatch(made: Rebuilt) -> Problem:
    """Describe a state whose fingerprint is not the recorded one."""
    return Problem(
        f"revision {made.revision.id[:12]}",
        f"its patches give the fingerprint {made.fingerprint[:12]}, "
        f"it says {made.revision.fingerprint[:12]}",
    )


def wrong_snapshots(opened: OpenStore) -> Iterator[Problem]:
    """Yield the readable snapshots on the way to head or a tag that differ from the result of their
    patches."""
    store, names = opened.store, set[str]()
    if not any(store.snapshots.names()):
        return
    whole_ids = {revision.id for revision in whole_revisions(opened)}
    for identity in dict.fromkeys([store.head_id, *store.tags().values()]):
        if identity not in whole_ids:
            continue
        opened.edited.take_off(0)
        layers = store.layers(identity)
        for segment in store.segments(layers):
            gathered = Gathered()
            for layer in layers[segment.first : segment.last]:
                opened.edited.put(patches := opened.patches(layer.patch))
                opened.edited.settle()
                gathered.take(patches)
            snapshot = None if segment.name in names else opened.states.snapshot(segment)
            names.add(segment.name)
            if snapshot is not None and not snapshot.is_same(Snapshot.of(gathered, opened.edited)):
                yield Problem(snapshot_label(segment), "is not what its patches come to")


def snapshot_label(segment: Segment) -> str:
    """Return the name of a snapshot for messages."""
    return f"snapshots/{segment.name}.json"
