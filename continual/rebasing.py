"""Rebasing: the requests of a history that are in force, applied to another base model.

The new model gets a store of its own beside the old one, with the same task, probes and settings;
the requests are applied in their order, in batches as large as before. A run that broke off can be
resumed. Prompts that the new model answers rightly by itself are not edited, so the report names
the requests that still needed their correction.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from continual.errors import CeditError
from continual.execution import Executor
from continual.execution.local import LOCAL
from continual.history.inspection import retained_at
from continual.new_store import NewStore, init
from continual.pictures.album import album_of
from continual.placement import BALANCED
from continual.recheck import retention
from continual.recheck.retention import ATTEMPTED, SKIPPED, outcomes_of, reverted_later
from continual.requests import NOT_CONTENT, Request
from continual.session import Session, open_session
from continual.settings import StoreSettings
from continual.step.pipeline import Step
from continual.step.settings import ApplySettings
from continual.tasks.joining import SPACED
from store import Revision, Store
from store.config import exists


@dataclass(frozen=True)
class RequestBatch:
    """Requests that are applied with the same settings, one batch of them."""

    requests: tuple[Request, ...]
    settings: ApplySettings


@dataclass(frozen=True)
class Report:
    """The outcomes of the requests on the new base, by their ids."""

    needed: tuple[str, ...]  # applied
    right_already: tuple[str, ...]
    failed: Mapping[str, str]  # with the reasons


def rebase(source: Store, path: Path, model: str, *, executor: Executor = LOCAL) -> Iterator[Step]:
    """Apply the requests in force at the source's head to another model, in a store at `path`.

    A store that is there already must come from a rebase of the same head to the same model; it is
    then finished. Raises CeditError for any other store, and the errors of `Session`.
    """
    with opened(source, path, model, executor) as session:
        done = _done(session.store)
        for group in groups(source):
            pending = [request for request in group.requests if request.id not in done]
            if pending:
                yield from session.apply_requests(pending, group.settings)
        session.settle()


def report(source: Store, rebased: Store) -> Report:
    """Report the outcome of each request in force at the source's head."""
    retained_requests = retained_at(source, source.head).requests
    last_outcomes: dict[str, retention.Outcome] = {}
    for revision in rebased.lineage("head"):
        last_outcomes.update(
            {o.id: o for o in outcomes_of(revision.body) if o.id in retained_requests}
        )
    by = {
        name: [
            i for i in retained_requests if i in last_outcomes and last_outcomes[i].outcome == name
        ]
        for name in _TOLD
    }
    return Report(
        needed=tuple(by[retention.APPLIED]),
        right_already=tuple(by[SKIPPED] + by[retention.REPEATED]),
        failed={i: str(last_outcomes[i].reason) for i in by[retention.FAILED]},
    )


_TOLD = (retention.APPLIED, SKIPPED, retention.REPEATED, retention.FAILED)


def _with_source(request: Request, revision: Revision) -> Request:
    """Return the request with its source's own fields from the time when it was applied."""
    notes = next(o.notes for o in outcomes_of(revision.body) if o.id == request.id)
    return request.model_copy(update={key: notes[key] for key in NOT_CONTENT if key in notes})


def groups(source: Store) -> Iterator[RequestBatch]:
    """Yield the requests in force, in order, in batches with the settings that they were applied
    with."""
    made = _made_with(source.lineage("head"))
    batch: list[Request] = []
    settings: ApplySettings | None = None
    for identity, retained in retained_at(source, source.head).requests.items():
        step_settings = replace(
            ApplySettings.from_json(made[identity].body["settings"]), force=False
        )
        if settings is not None and (
            step_settings != settings or len(batch) == settings.batch_size
        ):
            yield RequestBatch(tuple(batch), settings)
            batch = []
        settings = step_settings
        batch.append(_with_source(retained.request, made[identity]))
    if settings is not None:
        yield RequestBatch(tuple(batch), settings)


def _made_with(lineage: Sequence[Revision]) -> dict[str, Revision]:
    """Return the step that attempted each request last, by the request's id."""
    made: dict[str, Revision] = {}
    for revision, gone in zip(lineage, reverted_later(lineage), strict=True):
        if "settings" in revision.body:
            outcomes = outcomes_of(revision.body)
            attempted = [o.id for o in outcomes if o.outcome in ATTEMPTED and o.id not in gone]
            made.update(dict.fromkeys(attempted, revision))
    return made


def _done(store: Store) -> set[str]:
    """Return the ids of the requests that a store has an outcome for."""
    return {o.id for revision in store.lineage("head") for o in outcomes_of(revision.body)}


@contextmanager
def opened(source: Store, path: Path, model: str, executor: Executor = LOCAL) -> Iterator[Session]:
    """Open the new store, or make it. Raises CeditError for a store that no rebase of this history
    began."""
    origin = {"base": source.base.fingerprint, "head": source.head_id}
    if exists(path):
        with open_session(path, executor=executor) as session:
            if session.store.base.body.get("origin") != origin:
                raise CeditError(
                    f"{path} is a store, and not one that a rebase of this history at "
                    f"{source.head_id[:12]} began: choose another folder."
                )
            if (album := album_of(session.task)) is not None:
                album.borrow(source)
            yield session
        return
    with _probe_files(source) as files:
        new_store = _new(source, files, model, origin)
        with init(path, new_store, executor=executor) as session:
            yield session


def _new(
    source: Store, files: Mapping[str, Path], model: str, origin: Mapping[str, str]
) -> NewStore:
    settings = StoreSettings.of(source.settings)
    return NewStore(
        model=model,
        task=_task(settings.task),
        train_probes=files.get("train"),
        test_probes=files.get("test"),
        seed=settings.run.seed,
        stream=source.settings.get("stream"),
        device=settings.model.device,
        dtype=settings.model.dtype,
        device_map=next((line for line in settings.model.device_map if line in BALANCED), ""),
        editors=settings.editors,
        calibration=settings.calibration,
        origin=origin,
        lender=source,
    )


def _task(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `[task]` table without the former model's chat template and picture processor;
    prompts and answers are joined as before."""
    return {"joining": SPACED, **{k: v for k, v in table.items() if k not in _OF_MODELS}}


_OF_MODELS = ("template", "processor")


@contextmanager
def _probe_files(source: Store) -> Iterator[dict[str, Path]]:
    """Write a store's probe sets to temporary files in the form that `init` takes."""
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        for name, probes in source.base.body["probes"].items():
            files[name] = Path(folder) / f"{name}.jsonl"
            lines = "".join(f"{json.dumps(probe)}\n" for probe in probes)
            files[name].write_text(lines, encoding="utf-8")
        yield files
