"""A new store: what it is told, and all that is written down when it is made.

Knows the settings and the body of a base revision, and what the embedded model brings along. Leaves
the history behind it to `session`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from continual.base import BaseModel, load_base
from continual.calibration.config import NEW_STORES
from continual.editors.chains import new_tables
from continual.embedded import ATLAS, EmbeddedModel, embedded
from continual.execution import Executor
from continual.execution.local import LOCAL
from continual.model import EditedModel
from continual.model_files import model_directory
from continual.passes.partial import find_tail
from continual.recheck.general_rows import BODY, GeneralRows
from continual.recheck.probe_sets import read_probes
from continual.requests import Probe
from continual.session import Session
from continual.settings import DEFAULT_TASK
from continual.site import Site
from continual.statistics.texts import TextFiles
from continual.tasks import Task, make_task, new_settings, task_class
from continual.watch import general
from continual.watch.config import WatchConfig
from continual.watch.general import ReadText
from store import Store


def _unseen(_done: int, _total: int) -> None:
    """Progress, unseen."""


@dataclass(frozen=True)
class NewStore:
    """What `init` is told. Probe sets left out are an embedded model's own, else empty."""

    model: str = ATLAS.name
    task: Mapping[str, Any] | None = None
    train_probes: Path | None = None
    test_probes: Path | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    anatomy: Mapping[str, str] | None = None
    editors: Mapping[str, Mapping[str, Any]] | None = None  # the [editor.NAME] tables
    origin: Mapping[str, str] | None = None  # what the store was made from; see `rebasing`
    watch: Mapping[str, Any] | None = None  # the [watch] table
    stream: Mapping[str, Any] | None = None  # the [stream] table
    calibration: Mapping[str, Any] | None = None  # the [calibration] table; None: of a new store
    text: tuple[Path, ...] = ()  # files of general text, in the place of what the base writes

    @property
    def embedded(self) -> EmbeddedModel | None:
        """The model of the package that is named, if one is."""
        return embedded(self.model)


def init(
    path: Path,
    new: NewStore,
    *,
    on_progress: Callable[[int, int], None] = _unseen,
    executor: Executor = LOCAL,
) -> Session:
    """Make a store for a base model, measure its probes once, and open it for writing.

    `on_progress` is told the general texts written and their number; `executor` works the passes.
    """
    base = _base(new)
    table = new_settings(base, _told_task(new))
    task = make_task(base, table)
    find_tail(base.model, base.anatomy)  # a model that cannot be edited gets no store
    probes = _probes(new, task)
    settings = _settings(new, base, table, probes) | _editors(new, task)
    edited = EditedModel(base)
    with edited:
        read = _general_text(Site(edited, task, executor), new, on_progress)
    store = Store.init(path, settings, _body(new, probes, read), base.fingerprint)
    try:
        GeneralRows.keep(store, Site(edited, task), read)
        session = Session(store, edited, task, executor=executor)
        session.standing  # noqa: B018  measures the base, so that its accuracies are on record
    except BaseException:
        store.discard()  # a store is there or not
        raise
    return session


def _base(new: NewStore) -> BaseModel:
    return load_base(
        new.model,
        task_class(_told_task(new)).architecture,
        device=new.device,
        dtype=new.dtype,
        overrides=new.anatomy,
    )


def _told_task(new: NewStore) -> dict[str, Any]:
    """The task as it was asked for; an embedded model has its own."""
    own = new.embedded
    table = {"name": DEFAULT_TASK} if own is None else own.task
    return {**table, **(new.task or {})}


def _probes(new: NewStore, task: Task) -> dict[str, list[Probe]]:
    """The probe sets by name."""
    files = {"train": new.train_probes, "test": new.test_probes}
    if (own := new.embedded) is not None:
        files = {name: path or own.probes[name] for name, path in files.items()}
    return {name: read_probes(file, task) for name, file in files.items() if file is not None}


def _settings(
    new: NewStore,
    base: BaseModel,
    task: Mapping[str, Any],
    probes: Mapping[str, Sequence[Probe]],
) -> dict[str, Any]:
    """The store's settings, but for its editors'."""
    settings: dict[str, Any] = {
        "model": {
            "path": new.model if new.embedded else str(model_directory(new.model)),
            "fingerprint": base.fingerprint,
            "device": new.device,
            "dtype": new.dtype,
            "companions": [f"{name} {digest}" for name, digest in base.companions.items()],
        },
        "task": task,
        "anatomy": dict(new.anatomy or {}),
        "run": {"seed": new.seed},
        "probes": {name: len(probe_set) for name, probe_set in probes.items()},
    }
    if new.watch:
        settings["watch"] = dict(new.watch)
    if new.stream:
        settings["stream"] = dict(new.stream)
    if calibration := _calibration(new, task):
        settings["calibration"] = dict(calibration)
    return settings


def _calibration(new: NewStore, task: Mapping[str, Any]) -> Mapping[str, Any]:
    """The [calibration] table: the settings of an embedded model come with it."""
    if new.calibration is not None:
        return new.calibration
    return {} if new.embedded or task.get("name", DEFAULT_TASK) != "causal" else NEW_STORES


def _editors(new: NewStore, task: Task) -> dict[str, Any]:
    """The [editor.NAME] tables: those of a store that this one is made from stay as they are."""
    tables = new.editors or {}
    if not new.origin:
        own = new.embedded.editors if new.embedded else {}
        names = sorted({*own, *tables})
        told = {name: {**own.get(name, {}), **tables.get(name, {})} for name in names}
        tables = new_tables(told, task.name)
    return {"editor": {name: dict(table) for name, table in tables.items()}} if tables else {}


def _body(new: NewStore, probes: Mapping[str, Sequence[Probe]], read: ReadText) -> dict[str, Any]:
    """The body of the base revision."""
    body: dict[str, Any] = {
        "probes": {
            name: [probe.model_copy(update={"name": ""}).to_json() for probe in probe_set]
            for name, probe_set in probes.items()
        }
    }
    if new.origin:
        body["origin"] = dict(new.origin)
    if read.text.passages:
        body[BODY] = read.text.to_json()
    return body


def _general_text(site: Site, new: NewStore, on_progress: Callable[[int, int], None]) -> ReadText:
    """The general text of a new store: of files, or as the base writes it."""
    config = WatchConfig.of(new.watch or {})
    if new.text:
        return general.take(site, TextFiles(new.text), config)
    return general.write(site, config, new.seed, on_progress)
