"""An open store: its base model, and that model as it stands at a revision of the history.

Knows how store, model and task belong together, moves the model between states, and builds the
run state at head. Leaves the operations on past steps to `history`, and everything else to
`session`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from continual.base import WrongBaseModel, load_base
from continual.choices import DECODERS
from continual.embedded import embedded
from continual.errors import ModelError, SessionClosed
from continual.execution import Executor
from continual.execution.local import LOCAL
from continual.listening import Listener
from continual.memory.recall import MemoryConfig, Recall
from continual.model import EditedModel
from continual.model_files import companion_files, directory_fingerprint, model_directory
from continual.patches import Patch
from continual.pictures.album import album_of
from continual.recheck.run_state import RunState
from continual.settings import ModelSettings, StoreSettings
from continual.site import Site
from continual.snapshots import StateKeeper
from continual.statistics import Statistics
from continual.tasks import Task, make_task, task_class
from continual.watch.own_text import OwnText
from store import BlobRef, Revision, Store

OFFLOAD = "offload"
"""The folder in a store's cache for parameters of a split model: one in it for each process."""


class OpenStore:
    """An open store with its model. A context manager; outside of it the model is bare."""

    def __init__(
        self,
        store: Store,
        edited: EditedModel,
        task: Task,
        at: str = "head",
        executor: Executor = LOCAL,
    ) -> None:
        """`executor` runs the passes over many inputs."""
        self.store = store
        self.edited = edited
        self.task = task
        self.executor = executor
        self.states = StateKeeper(store, edited)
        if (album := album_of(task)) is not None:
            album.open(store)
        self.is_closed = False
        self.listener = Listener()
        self._stack = ExitStack()
        self._stack.callback(store.close)
        self._stack.enter_context(edited)
        try:
            edited.recall = self._recall()
            self.stand_at(at)
        except BaseException:
            self._stack.close()
            raise

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        writable: bool = True,
        at: str = "head",
        executor: Executor = LOCAL,
    ) -> Self:
        """Open a store with its model at a revision.

        Raises NoStore, StoreLocked, WrongBaseModel, …
        """
        store = Store.open(Path(path), writable=writable)
        try:
            parts = _model_and_task(StoreSettings.of(store.settings), store.cache / OFFLOAD)
            return cls(store, *parts, at, executor)
        except BaseException:
            store.close()
            raise

    def _recall(self) -> Recall:
        config = MemoryConfig.of(StoreSettings.of(self.store.settings).memory)
        recall = Recall(self.edited, config, self.store, self.task)
        self._stack.callback(recall.close)
        return recall

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the patches off and let go of the store."""
        self.is_closed = True
        self._stack.close()

    def _require_open(self) -> None:
        """Raise SessionClosed if the store is closed: without its patches the model would answer as
        the base does."""
        if self.is_closed:
            raise SessionClosed(self.store.path)

    @cached_property
    def site(self) -> Site:
        """The last FFN, where probes are read and judged."""
        return Site(self.edited, self.task, self.executor)

    @cached_property
    def statistics(self) -> Statistics:
        """The key statistics of the base model. If nobody gave text for them, a causal model's own
        writing is used."""
        statistics = Statistics.of(self.store, self.edited, self.executor)
        if statistics.texts is None and self.task.name in DECODERS:
            seed = StoreSettings.of(self.store.settings).run.seed
            statistics.texts = OwnText(self.site, seed, self.listener)
        return statistics

    # -- standing at a revision

    def patches(self, ref: BlobRef | None) -> tuple[Patch, ...]:
        """Read the parts of a patch; empty for None."""
        return self.states.patches(ref)

    def stand_at(self, name: str | Revision) -> Revision:
        """Put the model at a revision. Raises IntegrityError if its fingerprint differs."""
        revision = self.store.revision(name)
        self.states.stand(revision)
        return revision

    def stand_at_head(self) -> None:
        """Put the model at head if it is at another state."""
        if self.edited.fingerprint != self.store.head.fingerprint:
            self.stand_at("head")

    # -- the run state at head

    @cached_property
    def run_state(self) -> RunState:
        """Retention set, ledger and memory at head: built when first needed, and measured if no
        step did."""
        self.stand_at_head()
        run_state = RunState(self.store, self.site)
        run_state.record()
        return run_state

    def forget_run_state(self) -> None:
        """Forget the run state; it is built anew when it is needed next."""
        with suppress(AttributeError):
            del self.run_state

    def settle(self) -> None:
        """Re-check head if no step did, so that its metrics are on record at a run's end."""
        if self.store.ledger(self.store.head.seq) is None:
            self.forget_run_state()
            self.run_state  # noqa: B018  building it measures head


def _model_and_task(settings: StoreSettings, offload: Path) -> tuple[EditedModel, Task]:
    """Load the model that a store names, and its task. Raises WrongBaseModel, ModelError."""
    model = settings.model
    _require_there(model)
    base = load_base(
        model.path,
        task_class(settings.task).architecture,
        device=model.device,
        dtype=model.dtype,
        overrides=settings.anatomy,
        device_map=model.device_map,
        offload=offload,
    )
    _require_same(base.fingerprint, base.companions, model)
    return EditedModel(base), make_task(base, settings.task)


def _require_there(model: ModelSettings) -> None:
    """Raise ModelError if the base's folder is no longer at the path that the store names."""
    path = Path(model.path)
    if embedded(model.path) is None and not path.exists():
        raise ModelError(
            f"The base model of this store is not in {path} any more, where cedit.toml has it "
            "([model] path): `cedit relocate DIR` compares the files in another folder with the "
            f"store's fingerprint, and names it. Or put a link there: ln -s NEW {path}."
        )


def relocate(path: Path, model: str) -> str:
    """Point a store to another folder with the same base model; return the folder.

    Raises ModelError if there is no model, WrongBaseModel for another one, StoreLocked.
    """
    directory = model_directory(model)
    place = model if embedded(model) else str(directory)
    with Store.open(path, writable=True) as store:
        settings = StoreSettings.of(store.settings).model
        moved = replace(settings, path=place)
        _require_same(directory_fingerprint(directory), companion_files(directory), moved)
        store.change_setting("model", "path", place)
    return place


def _require_same(fingerprint: str, companions: Mapping[str, str], model: ModelSettings) -> None:
    """Raise WrongBaseModel if a base is not the store's."""
    directory = model_directory(model.path)
    if fingerprint != model.fingerprint:
        raise WrongBaseModel(
            f"The model in {directory} has fingerprint {fingerprint[:12]}, and this history "
            f"was made on {model.fingerprint[:12]}: put the right model back, or make a new store."
        )
    if model.companions is None:
        return
    recorded = dict(_named(line) for line in model.companions)
    names = sorted(recorded.keys() | companions.keys())
    changed = [name for name in names if recorded.get(name) != companions.get(name)]
    if changed:
        raise WrongBaseModel(
            f"{', '.join(changed)} in {directory} changed since this store was made, and may "
            "change what the model answers: put the files back as they were, or make a new store."
        )


def _named(line: str) -> tuple[str, str]:
    """Read the name and digest of a companion file; see `ModelSettings`."""
    name, _, digest = line.rpartition(" ")
    return name, digest
