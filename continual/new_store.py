"""Makes a new store: its settings, its base revision, and its general text.

Knows the settings and the body of a base revision, and the settings and probes that come with the
embedded model. Leaves the later history to `session`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from continual.base import PretrainedBase, load_base
from continual.calibration.config import NEW_STORES
from continual.editors.chains import new_tables
from continual.embedded import ATLAS, EmbeddedModel, embedded
from continual.errors import ModelError
from continual.execution import Executor
from continual.execution.local import LOCAL
from continual.model import EditedModel
from continual.model_files import model_directory
from continual.passes.edit_site import usual_context
from continual.picture_marks import digests_in
from continual.pictures.album import album_of
from continual.placement import device_map_lines
from continual.recheck.general_rows import BODY, GeneralRows
from continual.recheck.probe_sets import read_probes
from continual.requests import Probe
from continual.session import Session
from continual.settings import DEFAULT_TASK
from continual.site import Site
from continual.statistics.texts import TextFiles
from continual.tasks import Task, make_task, new_settings, task_class
from continual.tasks.chat import ChatTemplate
from continual.watch import general
from continual.watch.config import NEW_STORE, WatchConfig
from continual.watch.general import ReadText
from store import Store


def _unseen(_done: int, _total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class NewStore:
    """The arguments of `init`. Probe sets left out are an embedded model's own, else empty."""

    model: str = ATLAS.name
    task: Mapping[str, Any] | None = None
    train_probes: Path | None = None
    test_probes: Path | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    device_map: str = ""  # a name of accelerate's, or a JSON file; see `device_map_lines`
    anatomy: Mapping[str, str] | None = None
    editors: Mapping[str, Mapping[str, Any]] | None = None  # the [editor.NAME] tables
    origin: Mapping[str, str] | None = None  # the history that it was made from; see `rebasing`
    watch: Mapping[str, Any] | None = None  # the [watch] table
    stream: Mapping[str, Any] | None = None  # the [stream] table
    calibration: Mapping[str, Any] | None = None  # the [calibration] table; None: of a new store
    text: tuple[Path, ...] = ()  # files of general text, in the place of the base's own
    lender: Store | None = None  # the store that has the pictures that its probes show

    @property
    def embedded(self) -> EmbeddedModel | None:
        """The embedded model, if the model is one; else None."""
        return embedded(self.model)


def init(
    path: Path,
    new: NewStore,
    *,
    on_progress: Callable[[int, int], None] = _unseen,
    executor: Executor = LOCAL,
) -> Session:
    """Make a store for a base model, measure its probes once, and open it for writing.

    `on_progress` is told the general texts written and their number; `executor` runs the passes.
    """
    base, new = _with_context(_base(new), new)
    table = new_settings(base, _told_task(new))
    task = make_task(base, table)
    if (album := album_of(task)) is not None and new.lender is not None:
        album.borrow(new.lender)
    probes = _probes(new, task)
    settings = _settings(new, base, table, probes) | _editors(new, task)
    edited = EditedModel(base)
    with edited:
        read = _general_text(Site(edited, task, executor), new, on_progress)
    body = _body(new, probes, read)
    store = Store.init(path, settings, body, base.fingerprint, _pictures(body, task))
    try:
        GeneralRows.keep(store, Site(edited, task), read)
        session = Session(store, edited, task, executor=executor)
        session.run_state  # noqa: B018  measures the base, so that its accuracies are on record
    except BaseException:
        store.discard()  # a store is there or not
        raise
    return session


def _base(new: NewStore) -> PretrainedBase:
    if new.device_map and new.device != "cpu":
        raise ModelError(
            f"device = {new.device!r} and a device map name two places for the model: give one of "
            "--device and --device-map."
        )
    return load_base(
        new.model,
        task_class(_told_task(new)).architecture,
        device=new.device,
        dtype=new.dtype,
        overrides=new.anatomy,
        device_map=device_map_lines(new.device_map),
    )


def _with_context(base: PretrainedBase, new: NewStore) -> tuple[PretrainedBase, NewStore]:
    """Give the queries of a chat model their usual topic: at the end of a turn they say little
    without one. Not if the store says otherwise, brings another store's history, or watches
    nothing: without general text no direction is known to be rare."""
    table = new.anatomy or {}
    is_watched = WatchConfig.of(new.watch or {}).texts > 0
    is_causal = _told_task(new).get("name", DEFAULT_TASK) == "causal"
    is_chat = is_causal and getattr(base.tokenizer, "chat_template", None) is not None
    if "context" in table or new.origin or new.embedded or not (is_watched and is_chat):
        return base, new
    block = usual_context(base.model, base.anatomy)
    if block is None:
        return base, new
    turn = ChatTemplate(base.tokenizer).before_answer
    anatomy = replace(base.anatomy, context_block=block, turn=turn)
    overrides = {**table, "context": str(block), "turn": ",".join(map(str, turn))}
    source = base.source and replace(base.source, overrides=overrides)
    return replace(base, anatomy=anatomy, source=source), replace(new, anatomy=overrides)


def _told_task(new: NewStore) -> dict[str, Any]:
    """Return the `[task]` table as given, over the embedded model's own."""
    embedded_model = new.embedded
    table = {"name": DEFAULT_TASK} if embedded_model is None else embedded_model.task
    return {**table, **(new.task or {})}


def _probes(new: NewStore, task: Task) -> dict[str, list[Probe]]:
    """Read the probe sets by name."""
    files = {"train": new.train_probes, "test": new.test_probes}
    if (embedded_model := new.embedded) is not None:
        files = {name: path or embedded_model.probes.get(name) for name, path in files.items()}
    return {name: read_probes(file, task) for name, file in files.items() if file is not None}


def _settings(
    new: NewStore,
    base: PretrainedBase,
    task: Mapping[str, Any],
    probes: Mapping[str, Sequence[Probe]],
) -> dict[str, Any]:
    """Return the store's settings without its editors'."""
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
    if new.device_map:
        settings["model"]["device_map"] = list(device_map_lines(new.device_map))
    settings["watch"] = _watch_table(new)
    if new.stream:
        settings["stream"] = dict(new.stream)
    if calibration := _calibration(new, task):
        settings["calibration"] = dict(calibration)
    return settings


def _calibration(new: NewStore, task: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the [calibration] table; empty for an embedded model, which brings its settings, and
    for other tasks than causal."""
    if new.calibration is not None:
        return new.calibration
    return {} if new.embedded or task.get("name", DEFAULT_TASK) != "causal" else NEW_STORES


def _editors(new: NewStore, task: Task) -> dict[str, Any]:
    """Return the [editor.NAME] tables; tables from another store's history stay as they are."""
    tables = new.editors or {}
    if not new.origin:
        embedded_tables = new.embedded.editors if new.embedded else {}
        names = sorted({*embedded_tables, *tables})
        merged_tables = {
            name: {**embedded_tables.get(name, {}), **tables.get(name, {})} for name in names
        }
        tables = new_tables(merged_tables, task.name)
    return {"editor": {name: dict(table) for name, table in tables.items()}} if tables else {}


def _body(new: NewStore, probes: Mapping[str, Sequence[Probe]], read: ReadText) -> dict[str, Any]:
    """Return the body of the base revision."""
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


def _pictures(
    body: Mapping[str, Any], task: Task
) -> list[tuple[Mapping[str, Tensor], Mapping[str, Any]]]:
    """Return the pictures that a base revision's probes show, as the store keeps them."""
    album = album_of(task)
    if album is None:
        return []
    digests = dict.fromkeys(digests_in(json.dumps(body["probes"])))
    return [album.kept_form(digest) for digest in digests]


def _watch_table(new: NewStore) -> dict[str, Any]:
    """Return the `[watch]` table of a new store."""
    return {**NEW_STORE, **(new.watch or {})}


def _general_text(site: Site, new: NewStore, on_progress: Callable[[int, int], None]) -> ReadText:
    """Read the general text of a new store from files, or let the base write it."""
    config = WatchConfig.of(_watch_table(new))
    if new.text:
        return general.take(site, TextFiles(new.text), config)
    return general.write(site, config, new.seed, on_progress)
