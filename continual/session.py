"""A session: an open store that applies requests, goes back, and answers prompts.

The command line and Python programs hold one. Knows how the parts are put together; leaves each
part's work to its own module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from continual.calibration import Calibrated
from continual.calibration.of_store import StoreCalibration
from continual.editors.chains import chain_of, default_chain
from continual.errors import CeditError, RequestError
from continual.execution import Executor
from continual.execution.local import LOCAL
from continual.history import consolidating, corrections, inspection, reverting
from continual.history.consolidating import ConsolidateResult
from continual.history.inspection import rates_at
from continual.history.known import leading_known
from continual.history.reverting import RevertResult
from continual.history.rolling_back import roll_back
from continual.memory.recall import recall_of
from continual.memory.routing import Route
from continual.model import EditedModel
from continual.open_store import OpenStore
from continual.out_of_memory import remedy_named
from continual.pictures.album import album_of
from continual.pictures.records import PictureBorder
from continual.prompts import Prompt, prompt_json, read_prompt
from continual.readers import read_record
from continual.recheck.encoded_requests import encode
from continual.recheck.general_rows import BODY, GeneralRows
from continual.requests import Request
from continual.saving import Saved, SaveSettings, save
from continual.saving.merged import plain_model
from continual.settings import StoreSettings
from continual.statistics.texts import TextFiles
from continual.step.batches import Batch, batches
from continual.step.pipeline import Pipeline, Step, TriedStep
from continual.step.settings import ApplySettings
from continual.streams import Stream
from continual.streams.places import items_again, items_onward, stream_for
from continual.tasks import Question, Task
from continual.watch import general
from continual.watch.config import WatchConfig
from store import Draft, Revision, Store, operations

FAILED, QUARANTINED = "failed", "quarantined"
RETRIES = (FAILED, QUARANTINED)
"""The kinds of a stream's requests that can be given again."""
SAMPLED_MAX = 512
"""Records of a stream that facts to calibrate with are drawn from."""


def _unseen(_done: int, _total: int) -> None:
    """Ignore progress."""


def open_session(
    path: Path | str, *, writable: bool = True, at: str = "head", executor: Executor = LOCAL
) -> Session:
    """Open a store with its model at a revision. Raises NoStore, StoreLocked, WrongBaseModel, …"""
    return Session.open(path, writable=writable, at=at, executor=executor)


@dataclass(frozen=True)
class Answer:
    """The model's answer, and the record that it was read from; `route` is None without one."""

    text: str
    route: Route | None


TRIED_TOKENS = 64


@dataclass(frozen=True)
class TryOut:
    """An edit that was made, measured and taken off again."""

    before: str  # the model's answer
    rates_before: Mapping[str, float | None]
    after: str
    tried: TriedStep

    def to_json(self) -> dict[str, Any]:
        """Return its facts for people: outcome, answers, metrics, probes that turned."""
        outcome = next(o for o in self.tried.outcomes if not o.repair)
        measured = self.tried.measured
        turned = list(measured.turned.values())
        return {
            "outcome": outcome.outcome,
            "editor": outcome.editor,
            "reason": outcome.reason,
            "before": self.before,
            "after": self.after,
            "rates_before": dict(self.rates_before),
            "rates": measured.rates.to_json(),
            "broke": turned.count(False),
            "recovered": turned.count(True),
            "changed": [dict(change) for change in measured.changed],
            "patch_bytes": self.tried.patch_bytes,
        }


def _ignore(_: str) -> None:
    """Ignore the notice that a stream has changed."""


class Session(OpenStore):
    """An open store with the edited model at a revision of its history.

    A context manager: within it the model answers with the edits; behind it the store is closed
    and the session answers nothing more::

        with continual.open(".cedit") as session:
            for step in session.apply("corrections.jsonl"):
                print(step.revision.seq, step.measured.rates)
            session.status()["ER"]
    """

    def __init__(
        self,
        store: Store,
        edited: EditedModel,
        task: Task,
        at: str = "head",
        executor: Executor = LOCAL,
    ) -> None:
        super().__init__(store, edited, task, at, executor)
        edited.plain = lambda caller: plain_model(edited, caller=caller).model

    def __repr__(self) -> str:
        if self.is_closed:
            return f"<cedit session on {self.store.path}, closed>"
        head = self.store.head
        return (
            f"<cedit session on {self.store.path}: {head.id[:12]} (@{head.seq}), "
            f"{self.in_force} in force>"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
            for name, value in self.status().items()
            if not isinstance(value, Mapping | list)
        )
        return f"<table>{rows}</table>"

    # -- the history, as the command line shows it

    @property
    def head(self) -> Revision:
        """The revision at which the history stands."""
        return self.store.head

    @property
    def in_force(self) -> int:
        """The number of corrections in force at head."""
        return inspection.retained_at(self.store, self.store.head).applied

    def status(self) -> dict[str, Any]:
        """Return head, the number of corrections in force and the metrics, as `cedit status --json`
        prints them."""
        return inspection.status(self.store)

    def log(self) -> list[dict[str, Any]]:
        """Return the revisions from head to base, as `cedit log --json` prints them."""
        lineage = self.store.lineage("head")
        return [inspection.entry(self.store, revision) for revision in reversed(lineage)]

    def show(self, name: str = "head") -> dict[str, Any]:
        """Return a revision with its requests, as `cedit show --json` prints it. Raises
        UnknownRevision."""
        return inspection.details(self.store, self.store.revision(name))

    def diff(self, older: str, newer: str = "head") -> dict[str, Any]:
        """Return the difference of two revisions, as `cedit diff --json` prints it. Raises
        UnknownRevision."""
        store = self.store
        return inspection.difference(store, store.revision(older), store.revision(newer))

    def corrections(self, text: str = "") -> list[dict[str, Any]]:
        """Return the corrections in force, or all corrections of the history that have a text."""
        if not text:
            return corrections.in_force(self.store, self.store.head)
        return corrections.matching(corrections.ever_asked(self.store), text)

    def tag(self, name: str, revision: str = "head") -> None:
        """Give a revision a name; an existing tag of this name moves. Raises UnknownRevision."""
        self.store.tag(name, revision)

    # -- the model

    @property
    def model(self) -> Any:
        """The transformers model, running with the patches. `generate` and pipelines send inputs
        that are about a record to its reader; the model's own forward knows of no records. Raises
        SessionClosed."""
        self._require_open()
        return self.edited.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the base model."""
        return self.edited.tokenizer

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for people about the base model, made when it was loaded."""
        return self.edited.base.notes

    def save(
        self,
        directory: Path | str,
        form: str = "transformers",
        *,
        at: str | None = None,
        without: Collection[str] = (),
        dtype: str | None = None,
        force: bool = False,
    ) -> Saved:
        """Save the model at a revision (the session's unless named) as other tools load it, and
        ask the saved model every probe again; see `cedit save`.

        `without` names kinds of edits that stay behind (`continual.saving.KINDS`), `dtype` the
        number format (the base's unless given); `force` replaces a folder with other files. Raises
        CannotSave, NotOurs, UnknownRevision, all of them CeditError.
        """
        self._require_open()
        return save(self, directory, SaveSettings(form, frozenset(without), dtype, force), at)

    # -- applying

    def settings(self, **changes: Any) -> ApplySettings:
        """Return the store's settings for a run, with changes."""
        store_settings = StoreSettings.of(self.store.settings)
        editors = default_chain(self.task.name)
        watch = WatchConfig.of(store_settings.watch)
        settings = ApplySettings(
            editors, seed=store_settings.run.seed, editors=store_settings.editors, watch=watch
        )
        return replace(settings, **changes)

    def watch(
        self, files: Sequence[Path] = (), on_progress: Callable[[int, int], None] = _unseen
    ) -> Revision | None:
        """Give a history its general text, from files, or written by the base. From then on edits
        leave it alone, and Watch is measured. Returns None if there is no text to give."""
        config = WatchConfig.of(StoreSettings.of(self.store.settings).watch)
        self.stand_at_head()
        if files:
            read = general.take(self.site, TextFiles(tuple(files)), config)
        else:
            seed = StoreSettings.of(self.store.settings).run.seed
            read = general.write(self.site, config, seed, on_progress)
        if not read.text.passages:
            return None
        head = self.store.head
        revision = self.store.commit(
            Draft(operations.WATCH, head.id, head.fingerprint, {BODY: read.text.to_json()})
        )
        if self.edited.rows_state == self.edited.base.fingerprint:
            GeneralRows.keep(self.store, self.site, read)
        self.forget_run_state()
        return revision

    def _require_watch(self) -> None:
        """Give an older history its general text before its next edit."""
        config = WatchConfig.of(StoreSettings.of(self.store.settings).watch)
        if config.texts and all(BODY not in r.body for r in self.store.lineage("head")):
            self.watch()

    def steps(
        self,
        stream: Stream,
        settings: ApplySettings,
        *,
        on_change: Callable[[str], None] = _ignore,
        retry: Collection[str] = (),
    ) -> Iterator[Step]:
        """Apply a stream from this history's position in it.

        If the records read before are no longer there, or a followed file is replaced, `on_change`
        is called and the stream is read from its beginning: exact repeats are dropped. A pipe has
        no position to go on from. `retry` gives requests from before that position again: requests
        that FAILED, and QUARANTINED records that can be read now. A stream without a record that
        would change anything makes no step.
        """
        stream = self.seeing(stream)
        again = items_again(self.store, stream, partial(self._is_to_retry, retry)) if retry else ()
        items = chain(again, items_onward(self.store, stream, on_change))
        takes_all = settings.force or settings.repair
        leading, is_work = leading_known(self.store, items, takes_all=takes_all)
        if not is_work:
            return
        pipeline = self._pipeline(settings, partial(self._sampled, stream))
        items = chain(leading, items)
        for batch in batches(items, stream.name, self.site, settings, pipeline.stands):
            yield self._stepped(pipeline, batch)

    def picture_border(
        self, folder: Path | None = None, *, reads_files: bool = True, keeps: bool = True
    ) -> PictureBorder | None:
        """Return the border at which pictures of records come in; None for a task of texts."""
        album = album_of(self.task)
        return None if album is None else PictureBorder(album, folder, reads_files, keeps)

    def shown(self, prompt: Prompt, pictures: Sequence[object]) -> Prompt:
        """Return a prompt that shows pictures: paths, data URIs or bytes. Raises RequestError for
        a picture that cannot be read, and for a task of texts."""
        if not pictures:
            return prompt
        border = self.picture_border()
        if border is None:
            raise RequestError(
                f"Pictures are for the task multimodal, and this store's task is {self.task.name}: "
                "make a store with --task multimodal for a model that sees."
            )
        return read_prompt(border.prompt(prompt_json(prompt), pictures))

    def seeing(self, stream: Stream) -> Stream:
        """Return the stream with the border at which its pictures come in."""
        return replace(stream, pictures=self.picture_border(stream.folder))

    def _is_to_retry(self, retry: Collection[str], identity: str) -> bool:
        if identity in (requests := self.run_state.retention.requests):
            return FAILED in retry and not requests[identity].applied
        return QUARANTINED in retry and self.store.history.request(identity) is None

    @property
    def failed(self) -> list[Request]:
        """The requests that no editor got right and no later request superseded."""
        requests = self.run_state.retention.requests.values()
        return [retained.request for retained in requests if not retained.applied]

    def _pipeline(
        self, settings: ApplySettings, sampled: Callable[[], Sequence[Request]]
    ) -> Pipeline:
        self.stand_at_head()
        if settings.watch is not None:
            self._require_watch()
        settings = StoreCalibration.of(self).applied(settings, sampled)
        self.stand_at_head()
        upcoming = sampled() if settings.watch is not None else ()
        return Pipeline(self.store, self.site, self.run_state, settings, self.statistics, upcoming)

    # -- calibration

    def calibrate(
        self, editors: Sequence[str], source: str | Path | None = None, *, again: bool = False
    ) -> Iterator[Calibrated]:
        """Measure the settings of these editors on the base model, on facts of a stream or of the
        history, and yield the state after each trial. Finished calibrations are not repeated unless
        `again` says so. Raises CeditError for an editor that offers no settings."""
        calibration = StoreCalibration.of(self)
        tables = self.settings().editors
        if again:
            calibration.forget(editors, tables)
        requests = [] if source is None else self._sampled(stream_for(self.store, str(source)))
        yield from calibration.measure(editors, tables, requests)

    def calibrated(self, settings: ApplySettings, stream: Stream) -> ApplySettings:
        """Return the settings that the steps of a stream use, calibrated on the base."""
        return StoreCalibration.of(self).applied(settings, partial(self._sampled, stream))

    @staticmethod
    def _sampled(stream: Stream) -> list[Request]:
        """Return the requests at the beginning of a stream; none if it can be read only once."""
        if not Path(stream.name).is_file():
            return []
        items = islice(replace(stream, follow=False), SAMPLED_MAX)
        return [request for item in items for request in item.requests]

    def apply(
        self,
        source: str | Path | Iterable[Mapping[str, Any]],
        *,
        editor: str | None = None,
        **changes: Any,
    ) -> list[Step]:
        """Apply a file, or records in any format that the readers know. Raises RequestError for a
        record that cannot be read; unreadable records of a file go to quarantine instead."""
        if editor is not None:
            changes["chain"] = chain_of(editor, self.task.name)
        settings = self.settings(**changes)
        if isinstance(source, str | Path):
            return list(self.steps(stream_for(self.store, str(source)), settings))
        border = self.picture_border()
        records = source if border is None else (border.of(record) for record in source)
        requests = [request for record in records for request in read_record(record)]
        return [*self.apply_requests(requests, settings)]

    def apply_requests(
        self, requests: Sequence[Request], settings: ApplySettings
    ) -> Iterator[Step]:
        """Apply requests that come from no stream."""
        encoded_requests = [encode(request, self.task) for request in requests]
        pipeline = self._pipeline(settings, lambda: requests)
        for start in range(0, len(encoded_requests), settings.batch_size):
            batch = Batch(tuple(encoded_requests[start : start + settings.batch_size]))
            yield self._stepped(pipeline, batch)

    def try_out(self, request: Request, settings: ApplySettings) -> TryOut:
        """Make the edit of a request, measure it, ask, and take it off again: the history is not
        touched. Raises CeditError for a history without the general text that its next edit
        gives it, and for an edit that cannot be made."""
        self._require_watched(settings)
        before = (self.ask(request.prompt, TRIED_TOKENS), rates_at(self.store, self.head))
        pipeline = self._pipeline(settings, lambda: [request])
        depth = self.edited.depth
        try:
            tried = pipeline.try_out(Batch((encode(request, self.task),)))
            answer = self.ask(request.prompt, TRIED_TOKENS)
        finally:
            self.forget_run_state()
            self.edited.take_off(depth)
        return TryOut(*before, answer, tried)

    def _require_watched(self, settings: ApplySettings) -> None:
        config = settings.watch
        texts = (BODY in revision.body for revision in self.store.lineage("head"))
        if config is not None and config.texts and not any(texts):
            raise CeditError(
                "This history has no general text yet, which its next edit would give it: give it "
                "first, with `cedit watch`."
            )

    def _stepped(self, pipeline: Pipeline, batch: Batch) -> Step:
        """Make one step. If it fails, the model goes back to head, and the run state, which may
        have changed, is built anew when needed."""
        depth = self.edited.depth
        size = len(batch.encoded_requests)
        smaller = f"in smaller batches than {size}, or " if size > 1 else ""
        remedy = (
            f"step {self.store.length} was not made, all before it are kept; "
            f"apply the rest {smaller}where there is more memory"
        )
        try:
            with remedy_named(remedy):
                step = pipeline.step(batch)
        except BaseException:
            self.forget_run_state()
            self.edited.take_off(depth)
            raise
        self.states.follow(step.revision)
        return step

    # -- going back

    def rollback(self, name: str) -> Revision:
        """Move head to an earlier revision, or to any other, and leave a record of it."""
        return roll_back(self, name)

    def revert(self, request: str, *, resolve: bool = False) -> RevertResult:
        """Take one request out of the middle of the history; see `history.reverting`."""
        return reverting.revert(self, request, resolve=resolve)

    def consolidate(
        self, editor: str | None = None, tables: Mapping[str, Mapping[str, Any]] | None = None
    ) -> ConsolidateResult:
        """Solve all matrix edits in force together, as one patch; see `history.consolidating`."""
        return consolidating.consolidate(self, editor, tables)

    # -- asking

    def ask(self, prompt: Prompt, tokens_max: int = 32, pictures: Sequence[object] = ()) -> str:
        """Return the model's answer to a prompt, at the session's revision; `pictures` are those
        that it shows: paths, data URIs or bytes."""
        return self.answer(self.shown(prompt, pictures), tokens_max).text

    @torch.no_grad()
    def answer(self, prompt: Prompt, tokens_max: int = 32) -> Answer:
        """Return the model's answer to a prompt, and the record that it was read from."""
        self._require_open()
        question = self.task.question(prompt)
        answer = self.task.answer(self.model, question, tokens_max)
        return Answer(self.task.text(answer), self.route(question))

    def route(self, question: Question) -> Route | None:
        """Return the record that an input's tokens are about; None if the model answers by
        itself."""
        recall = recall_of(self.edited)
        (route,) = recall.routes([recall.text(question.ids)])
        return route
