"""A session: a store that is open, its base model, and the model as it stands at a revision.

This is what the command line and Python programs hold. Knows how the parts are put together; each
part's work is in its own module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from continual import atlas
from continual.base import ATLAS, WrongBaseModel, load_base, model_directory
from continual.editors.registry import chain_of, default_chain, new_tables
from continual.errors import StreamChanged
from continual.history.snapshots import States
from continual.memory.recall import MemoryConfig, Recall, recall_of
from continual.memory.routing import Route
from continual.model import EditedModel
from continual.passes.partial import find_tail
from continual.patches import Patch
from continual.prompts import Prompt
from continual.readers import read_record
from continual.recheck.candidates import encode
from continual.recheck.general_rows import BODY, GeneralRows
from continual.recheck.probe_sets import read_probes
from continual.recheck.standing import Standing
from continual.requests import Request
from continual.settings import DEFAULT_TASK, StoreSettings
from continual.shortage import shortage_told
from continual.site import Site
from continual.statistics import Statistics
from continual.statistics.texts import TextFiles
from continual.step.pipeline import Batch, Pipeline, Settings, Step, batches
from continual.streams import STANDARD_INPUT, Item, Stream, open_stream
from continual.tasks import Question, Task, make_task, new_settings, task_class
from continual.watch import general
from continual.watch.config import WatchConfig
from continual.watch.general import ReadText
from store import BlobRef, Draft, Revision, Store

if TYPE_CHECKING:
    from continual.history.reverting import Reverted


def _unseen(_done: int, _total: int) -> None:
    """Progress, unseen."""


@dataclass(frozen=True)
class NewStore:
    """What `init` is told. Probe sets left out are the atlas's own for the atlas, else empty."""

    model: str = ATLAS
    task: Mapping[str, Any] | None = None
    train_probes: Path | None = None
    test_probes: Path | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    anatomy: Mapping[str, str] | None = None
    editors: Mapping[str, Mapping[str, Any]] | None = None  # the [editor.NAME] tables
    origin: Mapping[str, str] | None = None  # what the store was made from; see `history.rebasing`
    watch: Mapping[str, Any] | None = None  # the [watch] table
    text: tuple[Path, ...] = ()  # files of general text, in the place of what the base writes


def init(
    path: Path, new: NewStore, *, on_progress: Callable[[int, int], None] = _unseen
) -> Session:
    """Make a store for a base model, measure its probes once, and open it for writing.

    `on_progress` is told the general texts written and their number.
    """
    is_atlas = new.model == ATLAS
    said = {**(atlas.TASK if is_atlas else {"name": DEFAULT_TASK}), **(new.task or {})}
    base = load_base(
        new.model,
        task_class(said).architecture,
        device=new.device,
        dtype=new.dtype,
        overrides=new.anatomy,
    )
    settings = {
        "model": {
            "path": ATLAS if is_atlas else str(model_directory(new.model)),
            "fingerprint": base.fingerprint,
            "device": new.device,
            "dtype": new.dtype,
        },
        "task": new_settings(base, said),
        "anatomy": dict(new.anatomy or {}),
        "run": {"seed": new.seed},
    }
    task = make_task(base, settings["task"])
    find_tail(base.model, base.anatomy)  # a model that cannot be edited gets no store
    given = {"train": new.train_probes, "test": new.test_probes}
    if is_atlas:
        given = {name: path or atlas.PROBES[name] for name, path in given.items()}
    probes = {name: read_probes(file, task) for name, file in given.items() if file is not None}
    settings["probes"] = {name: len(found) for name, found in probes.items()}
    body: dict[str, Any] = {
        "probes": {
            n: [p.model_copy(update={"name": ""}).to_json() for p in f] for n, f in probes.items()
        }
    }
    if new.watch:
        settings["watch"] = dict(new.watch)
    editors = new.editors or {}
    if not new.origin:  # else they are the other store's, as they are
        own = atlas.EDITORS if is_atlas else {}
        names = {*own, *editors}
        told = {name: {**own.get(name, {}), **editors.get(name, {})} for name in sorted(names)}
        editors = new_tables(told, task.name)
    if editors:
        settings["editor"] = {name: dict(table) for name, table in editors.items()}
    if new.origin:
        body["origin"] = dict(new.origin)
    edited = EditedModel(base)
    with edited:
        read = _general_text(Site(edited, task), new, on_progress)
    if read.text.passages:
        body[BODY] = read.text.to_json()
    store = Store.init(path, settings, body, base.fingerprint)
    GeneralRows.keep(store, Site(edited, task), read)
    session = Session(store, edited, task)
    session.standing  # noqa: B018  measures the base, so that its accuracies are on record
    return session


def _general_text(site: Site, new: NewStore, on_progress: Callable[[int, int], None]) -> ReadText:
    """The general text of a new store: of files, or as the base writes it."""
    config = WatchConfig.of(new.watch or {})
    if new.text:
        return general.take(site, TextFiles(new.text), config)
    return general.write(site, config, new.seed, on_progress)


def open_session(path: Path | str, *, writable: bool = True, at: str = "head") -> Session:
    """Open a store with its model at a revision. Raises NoStore, StoreLocked, WrongBaseModel, …"""
    store = Store.open(Path(path), writable=writable)
    try:
        settings = StoreSettings.of(store.settings)
        model = settings.model
        base = load_base(
            model.path,
            task_class(settings.task).architecture,
            device=model.device,
            dtype=model.dtype,
            overrides=settings.anatomy,
        )
        if base.fingerprint != model.fingerprint:
            raise WrongBaseModel(
                f"The model in {model_directory(model.path)} has fingerprint "
                f"{base.fingerprint[:12]}, and this history was made on "
                f"{model.fingerprint[:12]}: put the right model back, or make a new store."
            )
        task = make_task(base, settings.task)
        return Session(store, EditedModel(base), task, at)
    except BaseException:
        store.close()
        raise


@dataclass(frozen=True)
class Answer:
    """What the model answers, and the record that it was read from, if one was."""

    text: str
    route: Route | None


def _ignore(_: str) -> None:
    """The notice that a stream has changed, unheard."""


class Session:
    """An open store with the edited model. A context manager; outside of it the model is bare."""

    def __init__(self, store: Store, edited: EditedModel, task: Task, at: str = "head") -> None:
        self.store = store
        self.edited = edited
        self.task = task
        self.states = States(store, edited)
        self._stack = ExitStack()
        self._stack.callback(store.close)
        self._stack.enter_context(edited)
        try:
            edited.recall = self._recall()
            self.stand_at(at)
        except BaseException:
            self._stack.close()
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
        self._stack.close()

    # -- the model

    @property
    def model(self) -> Any:
        """The transformers model, running with the patches: for `generate` and pipelines, which
        route every input; its forward knows of no memory."""
        return self.edited.model

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return self.edited.tokenizer

    @cached_property
    def site(self) -> Site:
        """The last FFN, where probes are looked at."""
        return Site(self.edited, self.task)

    @cached_property
    def statistics(self) -> Statistics:
        """The key statistics of the base model."""
        return Statistics.of(self.store, self.edited)

    @cached_property
    def standing(self) -> Standing:
        """Retention set, ledger and memory at head: built when first needed."""
        self._stand_at_head()
        return Standing(self.store, self.site)

    def patches(self, ref: BlobRef | None) -> tuple[Patch, ...]:
        """The parts of a patch; none for None."""
        return self.states.patches(ref)

    def stand_at(self, name: str | Revision) -> Revision:
        """Put the model at a revision. Raises IntegrityError where its fingerprint is another."""
        revision = self.store.revision(name)
        self.states.stand(revision)
        return revision

    def _stand_at_head(self) -> None:
        if self.edited.fingerprint != self.store.head.fingerprint:
            self.stand_at("head")

    # -- applying

    def settings(self, **changes: Any) -> Settings:
        """The store's settings for a run, with changes."""
        own = StoreSettings.of(self.store.settings)
        chain = default_chain(self.task.name)
        watch = WatchConfig.of(own.watch)
        settings = Settings(chain, seed=own.run.seed, editors=own.editors, watch=watch)
        return replace(settings, **changes)

    def watch(
        self, files: Sequence[Path] = (), on_progress: Callable[[int, int], None] = _unseen
    ) -> Revision | None:
        """Give a history its general text: of files, or as the base writes it. From here on edits
        leave it alone, and Watch is measured. None where there is none to give."""
        config = WatchConfig.of(StoreSettings.of(self.store.settings).watch)
        self._stand_at_head()
        if files:
            read = general.take(self.site, TextFiles(tuple(files)), config)
        else:
            seed = StoreSettings.of(self.store.settings).run.seed
            read = general.write(self.site, config, seed, on_progress)
        if not read.text.passages:
            return None
        head = self.store.head
        revision = self.store.commit(
            Draft("watch", head.id, head.fingerprint, {BODY: read.text.to_json()})
        )
        if self.edited.rows_state == self.edited.base.fingerprint:
            GeneralRows.keep(self.store, self.site, read)
        self.forget_standing()
        return revision

    def _require_watch(self) -> None:
        """Give an older history its general text before its next edit."""
        config = WatchConfig.of(StoreSettings.of(self.store.settings).watch)
        if config.texts and all(BODY not in r.body for r in self.store.lineage("head")):
            self.watch()

    def steps(
        self, stream: Stream, settings: Settings, *, on_change: Callable[[str], None] = _ignore
    ) -> Iterator[Step]:
        """Apply a stream from where this history left it.

        Where what was read before is no longer there, `on_change` is told and the stream is read
        from its beginning: exact repeats are dropped. Standard input has no place to go on from.
        """
        items = self._items(stream, on_change)
        pipeline = self._pipeline(settings)
        for batch in batches(items, stream.name, self.site, settings):
            yield self._stepped(pipeline, batch)

    def settle(self) -> None:
        """Re-check head where no step has, so that its metrics are on record at a run's end."""
        if self.store.ledger(self.store.head.seq) is None:
            self.forget_standing()
            self.standing  # noqa: B018  measures what is not measured yet

    def _items(self, stream: Stream, on_change: Callable[[str], None]) -> Iterator[Item]:
        state = None if stream.name == STANDARD_INPUT else self.store.stream(stream.name)
        if state is None:
            yield from stream
            return
        items = stream.after(state["position"], state["rolling"])
        try:
            first = next(items, None)
        except StreamChanged as change:
            on_change(str(change))
            yield from stream
            return
        if first is not None:
            yield first
            yield from items

    def _pipeline(self, settings: Settings) -> Pipeline:
        self._stand_at_head()
        if settings.watch is not None:
            self._require_watch()
        return Pipeline(self.store, self.site, self.standing, settings, self.statistics)

    def apply(
        self,
        source: str | Path | Iterable[Mapping[str, Any]],
        *,
        editor: str | None = None,
        **changes: Any,
    ) -> list[Step]:
        """Apply a file, or records in any format that the readers know. Raises RequestError for a
        record that cannot be read; records of a file go to quarantine instead."""
        if editor is not None:
            changes["chain"] = chain_of(editor, self.task.name)
        settings = self.settings(**changes)
        if isinstance(source, str | Path):
            return list(self.steps(open_stream(str(source)), settings))
        requests = [request for record in source for request in read_record(record)]
        return [*self.apply_requests(requests, settings)]

    def apply_requests(self, requests: Sequence[Request], settings: Settings) -> Iterator[Step]:
        """Apply requests that come from no stream."""
        candidates = [encode(request, self.task) for request in requests]
        pipeline = self._pipeline(settings)
        for first in range(0, len(candidates), settings.batch_size):
            batch = Batch(tuple(candidates[first : first + settings.batch_size]))
            yield self._stepped(pipeline, batch)

    def _stepped(self, pipeline: Pipeline, batch: Batch) -> Step:
        """One step. One that breaks off may have moved what a run carries: that is built anew."""
        size = len(batch.candidates)
        smaller = f"in smaller batches than {size}, or " if size > 1 else ""
        remedy = (
            f"step {self.store.length} was not made, all before it are kept; "
            f"apply the rest {smaller}where there is more memory"
        )
        try:
            with shortage_told(remedy):
                step = pipeline.step(batch)
        except BaseException:
            self.forget_standing()
            raise
        self.states.follow(step.revision)
        return step

    # -- going back

    def rollback(self, name: str) -> Revision:
        """Move head to an earlier revision, or to any other, and leave a record of it."""
        before = self.store.head
        target = self.store.revision(name)
        streams = _streams_after(self.states.stand(target))
        self.store.commit(
            Draft(
                operation="rollback",
                parent=target.id,
                fingerprint=target.fingerprint,
                body={"from": before.id, "target": target.id},
                streams={**dict.fromkeys(self.store.streams()), **streams},
                head=target.id,
            )
        )
        self.forget_standing()
        return target

    def revert(self, request: str, *, resolve: bool = False) -> Reverted:
        """Take one request out of the middle of the history; see `history.reverting`."""
        from continual.history.reverting import revert

        return revert(self, request, resolve=resolve)

    def forget_standing(self) -> None:
        """Build what is carried in memory anew when it is needed next."""
        with suppress(AttributeError):
            del self.standing

    # -- asking

    def ask(self, prompt: Prompt, tokens_max: int = 32) -> str:
        """The model's answer to a prompt, at the revision where it stands."""
        return self.answer(prompt, tokens_max).text

    @torch.no_grad()
    def answer(self, prompt: Prompt, tokens_max: int = 32) -> Answer:
        """The model's answer to a prompt, and where it is from."""
        question = self.task.question(prompt)
        answer = self.task.answer(self.model, question, tokens_max)
        return Answer(self.task.text(answer), self.route(question))

    def route(self, question: Question) -> Route | None:
        """The record that an input's tokens are about; None where the model answers by itself."""
        recall = recall_of(self.edited)
        (route,) = recall.routes([recall.text(question.ids)])
        return route


def _streams_after(lineage: Iterable[Revision]) -> dict[str, Any]:
    """Where the streams were at the end of a lineage: its own history is what counts."""
    states: dict[str, Any] = {}
    for revision in lineage:
        states.update(revision.body.get("streams", {}))
    return states
