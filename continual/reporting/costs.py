"""The costs of the way to head: seconds and bytes, by step and by editor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from continual.reporting.walk import Visit
from store import BlobRef, Revision, Store, operations
from store.sizes import measure

SLOWEST = 10  # steps


@dataclass(frozen=True)
class StepTime:
    """The durations of one step, up to its commit. None where its record has no durations."""

    place: int  # steps from base
    seq: int
    revision: str
    editors: tuple[str, ...]  # makers of the patch
    edits: int
    edit_s: float | None
    probe_s: float | None
    recheck_s: float | None
    patch_bytes: int

    @property
    def total_s(self) -> float | None:
        """The sum of all durations; None if one is unknown."""
        if self.edit_s is None or self.probe_s is None or self.recheck_s is None:
            return None
        return self.edit_s + self.probe_s + self.recheck_s


@dataclass(frozen=True)
class StepCosts:
    """All steps on the way to head."""

    total: int
    timed: int  # steps with known durations
    seconds: float | None  # of the timed steps
    times: tuple[StepTime, ...]  # base first
    slowest: tuple[StepTime, ...]  # the slowest first


@dataclass(frozen=True)
class EditorCost:
    """The steps whose patches were made by the same editors."""

    editors: tuple[str, ...]
    steps: int
    edits: int  # repairs included
    timed_edits: int  # of steps with known durations
    edit_s: float | None  # of the timed edits
    patch_bytes: int


@dataclass(frozen=True)
class StoreSizes:
    """Bytes on the disk; `patches` counts the patches that any entry of the journal names."""

    journal: int
    snapshots: int
    cache: int
    quarantine: int
    patches: int
    patch_count: int
    patch_median: float | None
    patch_largest: int | None
    unnamed_patches: int  # bytes of patch files that nothing leads to: see `cedit gc`


def steps(visits: Iterable[Visit]) -> StepCosts:
    """Return the steps of a lineage. Rollbacks are in none, and a revert is no step."""
    edits = (visit for visit in visits if visit.revision.operation == operations.EDIT)
    times = tuple(map(_step, edits))
    timed_steps = [(seconds, time) for time in times if (seconds := time.total_s) is not None]
    slowest = sorted(timed_steps, key=lambda pair: (-pair[0], pair[1].seq))[:SLOWEST]
    return StepCosts(
        total=len(times),
        timed=len(timed_steps),
        seconds=sum(seconds for seconds, _ in timed_steps) if timed_steps else None,
        times=times,
        slowest=tuple(time for _, time in slowest),
    )


def _step(visit: Visit) -> StepTime:
    patch = visit.revision.patch
    return StepTime(
        place=visit.place,
        seq=visit.seq,
        revision=visit.revision.id,
        editors=visit.editors,
        edits=len(visit.applied),
        edit_s=visit.seconds("edit_s"),
        probe_s=visit.seconds("probe_s"),
        recheck_s=visit.seconds("recheck_s"),
        patch_bytes=patch.length if patch else 0,
    )


@dataclass
class _CostSum:
    steps: int = 0
    edits: int = 0
    timed_edits: int = 0
    edit_s: float = 0.0
    patch_bytes: int = 0
    is_timed: bool = field(default=False)

    def take(self, step: StepTime) -> None:
        self.steps += 1
        self.edits += step.edits
        self.patch_bytes += step.patch_bytes
        if step.edit_s is not None:
            self.is_timed = True
            self.timed_edits += step.edits
            self.edit_s += step.edit_s


def editor_costs(times: Iterable[StepTime]) -> tuple[EditorCost, ...]:
    """Sum the costs by the editors that made a step's patch; the editors with most edits first."""
    sums: dict[tuple[str, ...], _CostSum] = {}
    for step in times:
        if step.editors:
            sums.setdefault(tuple(sorted(step.editors)), _CostSum()).take(step)
    costs = (
        EditorCost(
            editors,
            steps=total.steps,
            edits=total.edits,
            timed_edits=total.timed_edits,
            edit_s=total.edit_s if total.is_timed else None,
            patch_bytes=total.patch_bytes,
        )
        for editors, total in sums.items()
    )
    return tuple(sorted(costs, key=lambda cost: (-cost.edits, cost.editors)))


def store_sizes(store: Store, journal: Sequence[Revision]) -> StoreSizes:
    """Return the bytes that the store takes on the disk now."""
    sizes = measure(store)
    refs: set[BlobRef] = {ref for revision in journal for ref in revision.blobs}
    lengths = [ref.length for ref in refs]
    return StoreSizes(
        journal=sizes.journal,
        snapshots=sizes.snapshots,
        cache=sizes.cache,
        quarantine=sizes.quarantine,
        patches=sum(lengths),
        patch_count=len(lengths),
        patch_median=median(lengths) if lengths else None,
        patch_largest=max(lengths, default=None),
        unnamed_patches=max(0, sizes.patches - sum(lengths)),
    )
