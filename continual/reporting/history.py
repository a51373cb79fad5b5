"""The report on a history: all of its facts in one frozen object, read in one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from continual.history.inspection import JsonObject, retained_along
from continual.history.warnings import store_warnings
from continual.recheck.metrics import Rates
from continual.recheck.retention import Retention
from continual.reporting.branches import Branch, branches
from continual.reporting.corrections import Corrections, corrections
from continual.reporting.costs import (
    EditorCost,
    StepCosts,
    StoreSizes,
    editor_costs,
    steps,
    store_sizes,
)
from continual.reporting.curves import BranchMark, Point, Stop, marks, points, rates_of, way
from continual.reporting.walk import Visit, walk
from continual.settings import StoreSettings
from store import Revision, Store


@dataclass(frozen=True)
class Title:
    """The name of a history, and the place where it stands."""

    store: str
    model: str  # the last part of its path
    model_path: str
    task: str
    base: str  # fingerprint
    head: str  # id
    seq: int
    fingerprint: str  # of head
    revisions: int  # from base to head, base excluded
    entries: int  # of the journal, base and rollbacks included
    active: int  # corrections in force
    failed: int
    first_at: str | None  # times of the earliest and the latest measurement, ISO 8601
    last_at: str | None
    made_at: str  # this report
    tags: Mapping[str, str]  # ids by tag
    streams: Mapping[str, int]  # records read, by stream


@dataclass(frozen=True)
class HistoryReport:
    """Everything that `cedit report` shows."""

    title: Title
    rates: Rates  # at head
    points: tuple[Point, ...]
    marks: tuple[BranchMark, ...]
    way: tuple[Stop, ...]  # the revisions up to head, base first
    branches: tuple[Branch, ...]  # beside it
    steps: StepCosts
    corrections: Corrections
    editors: tuple[EditorCost, ...]
    sizes: StoreSizes
    settings: Mapping[str, Any]  # the tables of cedit.toml
    warnings: tuple[str, ...]  # to heed before further edits; each has a remedy

    def to_json(self) -> JsonObject:
        """Return one JSON object with the fields of these classes; ids whole, times in seconds."""
        return {"type": "report", **asdict(self)}


def report_on(store: Store) -> HistoryReport:
    """Return the facts at head. The store may be open for reading only, and written to meanwhile.

    Raises IntegrityError for records that are not as they were written.
    """
    with store.journal.snapshot():
        lineage = store.lineage("head")
        journal = list(store.revisions())
        visits = walk(store, lineage)
        retention = retained_along(store, lineage)
        step_report = steps(visits)
        return HistoryReport(
            title=_title(store, visits, journal, retention),
            rates=rates_of(visits[-1]),
            points=points(visits),
            marks=marks(visits, journal),
            way=way(visits, store.tags()),
            branches=branches(store, visits, journal),
            steps=step_report,
            corrections=corrections(store, visits, retention),
            editors=editor_costs(step_report.times),
            sizes=store_sizes(store, journal),
            settings=store.settings,
            warnings=tuple(store_warnings(store)),
        )


def _title(
    store: Store, visits: Sequence[Visit], journal: Sequence[Revision], kept: Retention
) -> Title:
    head = visits[-1].revision
    settings = StoreSettings.of(store.settings)
    path = settings.model.path
    times = [visit.at for visit in visits if visit.at is not None]
    return Title(
        store=str(store.path),
        model=PurePath(path).name or path,
        model_path=path,
        task=settings.task_name,
        base=store.base.fingerprint,
        head=head.id,
        seq=head.seq,
        fingerprint=head.fingerprint,
        revisions=len(visits) - 1,
        entries=len(journal),
        active=kept.applied,
        failed=len(kept.requests) - kept.applied,
        first_at=min(times, default=None),
        last_at=max(times, default=None),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        tags=store.tags(),
        streams={name: int(state["position"]) for name, state in store.streams().items()},
    )
