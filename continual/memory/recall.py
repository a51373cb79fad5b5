"""Recall: the parts besides its records that a model needs to answer by them.

- the scope, which decides which record an input is about
- readers by method, which answer it: SERAC's counterfactual model, IKE's frozen base model

Both are loaded when an input first needs them; a model that remembers nothing loads neither.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from continual.errors import CeditError, ModelError
from continual.loading import load_pretrained
from continual.memory import embedded_texts, generation
from continual.memory.encoder import SentenceEncoder
from continual.memory.index import RecordIndex
from continual.memory.routing import Route, routes_of
from continual.memory.scope import Scope, ThresholdScope, require_threshold
from continual.memory.trained import EMBEDDED, TrainedScope
from continual.model import EditedModel
from continual.model_files import directory_fingerprint, model_directory
from continual.picture_marks import leading, marked
from continual.pictures.album import album_of
from continual.tables import SettingsTable
from continual.tasks import Task
from store import Store, StoreError

SERAC, IKE = "serac", "ike"
UNTRAINED = "threshold"


class ScopeChanged(CeditError):
    """The records in memory were embedded by another encoder or scope than the store names now."""

    exit_code = 20

    def __init__(self, recorded: str, found: str) -> None:
        super().__init__(
            f"the memory: its records were embedded by {recorded[:12]}, and [memory] in "
            f"cedit.toml names {found[:12]} now: name the former encoder and scope again, or "
            "embed all records anew with `cedit reembed`"
        )
        self.recorded, self.found = recorded, found


@dataclass(frozen=True)
class MemoryConfig(SettingsTable):
    """The `[memory]` table of a store."""

    table: ClassVar[str] = "memory"

    encoder: str | None = None
    """The folder of the sentence-transformers model that embeds texts; None: MiniLM."""
    scope: str | None = None  # the file of a trained scope, or `threshold` for the untrained one
    threshold: float | None = None
    """The score from which on an input is about a record; None: the scope's own."""
    candidates: int | None = None
    """Nearest records of an input that the scope scores; None: the scope's own."""
    exact: bool = False  # compare an input with each record, however many there are
    counterfactual: str | None = None
    """The folder of SERAC's counterfactual model; None: the base model."""
    counterfactual_fingerprint: str | None = None
    """SHA-256 of the counterfactual model; another one is refused."""


def make_scope(config: MemoryConfig) -> Scope:
    """Make the scope that a store names.

    Without a name, the package's encoder gets the trained scope that comes with the package, and
    any other encoder a scope by threshold.
    """
    encoder = SentenceEncoder(None if config.encoder is None else Path(config.encoder))
    scope: TrainedScope | ThresholdScope
    if config.scope not in (None, UNTRAINED):
        scope = TrainedScope.load(Path(config.scope), encoder)
    elif config.scope is None and config.encoder is None and EMBEDDED.is_file():
        scope = TrainedScope.embedded(encoder)
    else:
        scope = ThresholdScope(encoder)
    if config.threshold is not None:
        scope.threshold = require_threshold(config.threshold)
    if config.candidates is not None:
        scope.candidates = config.candidates
    return scope


class Recall:
    """Finds and reads the records of an edited model."""

    def __init__(
        self,
        edited: EditedModel,
        config: MemoryConfig | None = None,
        store: Store | None = None,
        task: Task | None = None,
    ) -> None:
        """Serve `edited`. Embedded texts are kept in `store` for the next time; `task` says how an
        input is read behind a context, where it is not as the tokenizer has it."""
        self._edited, self._store = edited, store
        self.config = config or MemoryConfig()
        self._task = task
        self._index = RecordIndex(edited.memory, is_exact=self.config.exact)
        self._readers: dict[str, Callable[[], AbstractContextManager[Any]]] = {
            SERAC: self._counterfactual,
            IKE: self._base,
        }

    @cached_property
    def scope(self) -> Scope:
        """The scope, made when first needed."""
        scope = make_scope(self.config)
        if self._store is not None and scope.encoder is not None:
            embedded_texts.load(self._store, scope.encoder)
        return scope

    def _head(self) -> Store | None:
        """Return the store, if the model stands at its head."""
        store = self._store
        is_there = store is not None and store.head.fingerprint == self._edited.fingerprint
        return store if is_there else None

    def close(self) -> None:
        """Keep the embedded texts and the index, if there are any."""
        scope = self.__dict__.get("scope")  # without making it
        if self._store is None or scope is None:
            return
        if scope.encoder is not None:
            embedded_texts.save(self._store, scope.encoder)
        with suppress(StoreError):  # a store that a full disk has closed
            if (store := self._head()) is not None:
                self._index.save(store, scope.fingerprint)

    def require_scope(self) -> Scope:
        """Return the scope. Raises ScopeChanged if another one embedded the records."""
        fingerprint = self.scope.fingerprint
        for record_scope in self._edited.memory.scopes - {fingerprint}:
            raise ScopeChanged(record_scope, fingerprint)
        return self.scope

    def routes(self, texts: Sequence[str]) -> list[Route | None]:
        """Return the record that each text is about; None where the model answers by itself."""
        bank = self._edited.memory
        if not len(bank):
            return [None] * len(texts)
        scope = self.require_scope()
        if self._index.is_used and (store := self._head()) is not None:
            self._index.load(store, scope.fingerprint)
        return routes_of(texts, bank, scope, self._index)

    # -- reading

    def generate(self, *args: Any, **options: Any) -> Any:
        """See `EditedModel.generate`."""
        return generation.generate(self._edited, self, *args, **options)

    def text(self, ids: Sequence[int]) -> str:
        """Return an input as the scope sees it."""
        text = marked(
            self._edited.tokenizer,
            ids,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return text.strip()

    def question(self, place: int, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens to read for an input that is about the record at a place."""
        return self.behind(self._edited.memory.readings[place].context, ids)

    def behind(self, context: str, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens of a context and of an input behind it. The pictures that the input
        begins with stand in front of the context: a model sees them before it reads."""
        text = self.text(ids) if self._task is None else self._task.readable(ids)
        pictures, words = leading(text)
        return self.tokens(pictures + context + words)

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return a text as the model reads it."""
        if self._task is not None:
            return self._task.tokens(text)
        return tuple(self._edited.tokenizer(text)["input_ids"])

    def room(self, question: Sequence[int]) -> int:
        """Return the number of answer tokens that fit behind a question."""
        limit = self._edited.base.context_tokens_max
        return sys.maxsize if limit is None else max(0, limit - len(question))

    @contextmanager
    def reading(self, method: str) -> Iterator[Any]:
        """Yield the model that reads for a method, for as long as the `with` lasts.

        Raises ModelError for a method that this version does not know.
        """
        if method not in self._readers:
            raise ModelError(
                f"A record is answered by {method!r}, which this version of cedit does not know "
                f"(it knows {', '.join(self._readers)}): upgrade cedit."
            )
        with self._readers[method]() as model:
            yield model

    @contextmanager
    def _base(self) -> Iterator[Any]:
        with self._edited.bare():
            yield self._edited.model

    def _counterfactual(self) -> AbstractContextManager[Any]:
        is_trained = self.config.counterfactual is not None
        if is_trained and album_of(self._task) is not None:
            raise ModelError(
                "[memory] counterfactual names a model of texts, and this store's prompts show "
                "pictures: take the line out, so that the base model reads."
            )
        return nullcontext(self._trained) if is_trained else self._base()

    @cached_property
    def _trained(self) -> Any:
        """The counterfactual model of the store. Raises ModelError where it does not fit."""
        directory = model_directory(str(self.config.counterfactual))
        setting = self.config.counterfactual_fingerprint
        fingerprint = directory_fingerprint(directory)
        if setting not in (None, fingerprint):
            raise ModelError(
                f"The counterfactual model in {directory} has fingerprint {fingerprint[:12]}, and "
                f"[memory] in cedit.toml has {str(setting)[:12]}: put the right one back, or take "
                "the line out to use it as it is."
            )
        return load_reader(directory, self._edited)


def load_reader(directory: Path, edited: EditedModel) -> Any:
    """Load a causal model that reads the base model's own tokens. Raises ModelError."""
    dtype = next(edited.model.parameters()).dtype
    reader = load_pretrained(directory, "AutoModelForCausalLM", dtype)
    if reader.tokenizer.get_vocab() != edited.tokenizer.get_vocab():
        raise ModelError(
            f"The model in {directory} has other tokens than the base model: start from one with "
            "the base's own tokenizer."
        )
    return reader.model.to(edited.device)


def recall_of(edited: EditedModel) -> Recall:
    """Return a model's recall. Raises ModelError for a model without one."""
    recall = edited.require_recall()
    assert isinstance(recall, Recall)
    return recall
