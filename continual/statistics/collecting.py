"""A run: text through the model, sums to the disk now and then, statistics in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from continual.errors import CeditError, ModelError
from continual.execution import Executor
from continual.model import EditedModel
from continual.passes.batching import by_length
from continual.statistics.moments import Moments, read_keys
from continual.statistics.texts import TextError
from continual.statistics.windows import Passes, Piece, TextPlace, Window, skip, windows
from store import Store
from store.cache import Cached
from store.errors import IntegrityError

_PARTIAL = "statistics/partial"


@dataclass(frozen=True)
class CollectingProgress:
    """The progress of a run."""

    documents: int
    tokens: int


@dataclass(frozen=True)
class Job:
    """The settings of a run. ``made_for`` names the model and the sites that the keys belong to."""

    blocks: tuple[int, ...]
    tokens_max: int | None
    passes: Passes
    made_for: Mapping[str, Any]

    def identity(self, dtype: torch.dtype) -> dict[str, Any]:
        """Return the settings that a run must share with an interrupted one to go on from it."""
        settings = asdict(self.passes)
        del settings["checkpoint_seconds"]
        return {"made_for": dict(self.made_for), "dtype": str(dtype), "passes": settings}


class Collection:
    """One run: text through the model, sums to the disk now and then, statistics in the end."""

    def __init__(self, store: Store, edited: EditedModel, job: Job, executor: Executor) -> None:
        if edited.anatomy.encoder is not None:
            raise ModelError("Key statistics are collected for decoders only: choose one.")
        self._store = store
        self._edited = edited
        self._job = job
        self._executor = executor
        self._moments = Moments(edited, job.blocks)
        self._identity = job.identity(next(edited.model.parameters()).dtype)

    def run(
        self, texts: Iterable[str], on_change: Callable[[str], None]
    ) -> Iterator[CollectingProgress]:
        """Collect everything, and yield the progress pass by pass."""
        job = self._job
        documents, place = self._begin(texts, on_change)
        deadline = self._next_checkpoint()
        for window in windows(documents, place, self._tokens, job.passes, job.tokens_max):
            yield from self._add(window, place)
            place = window.place
            if window.is_whole and time.monotonic() >= deadline:
                meta = {"identity": self._identity, "place": asdict(place)}
                self._store.put_cached(_PARTIAL, self._moments.tensors(), meta)
                deadline = self._next_checkpoint()
        self._keep(place)

    def _add(self, window: Window, start: TextPlace) -> Iterator[CollectingProgress]:
        tokens, pass_tokens = start.tokens, self._job.passes.pass_tokens_max
        for half, pieces in enumerate((window.even, window.odd)):
            places = by_length([len(piece) for piece in pieces], pass_tokens)
            passes = [[pieces[place] for place in batch] for batch in places]
            read = partial(read_keys, self._edited, self._job.blocks)
            for batch, keys in zip(passes, self._executor.map(read, passes), strict=True):
                self._moments.add(half, keys)
                tokens += sum(map(len, batch))
                yield CollectingProgress(start.documents, tokens)
        self._moments.require_finite()

    def _keep(self, place: TextPlace) -> None:
        """Replace the kept statistics of every block."""
        if not place.tokens:
            raise CeditError("The text has no tokens: key statistics need some.")
        made_for = self._job.made_for
        for block, site in zip(self._job.blocks, made_for["sites"], strict=True):
            moment, convergence = self._moments.mean(block)
            meta = {
                "made_for": {**made_for, "sites": [site]},
                "dtype": self._identity["dtype"],
                "text": place.rolling,
                "documents": place.documents,
                "count": place.tokens,
                "convergence": convergence,
            }
            self._store.put_cached(name_of(block), {"second_moment": moment}, meta)
        self._store.drop_cached(_PARTIAL)

    # -- going on

    def _begin(
        self, texts: Iterable[str], on_change: Callable[[str], None]
    ) -> tuple[Iterator[str], TextPlace]:
        """Return the documents still to be read, and the place behind the ones already summed."""
        state = self._interrupted(on_change)
        if state is None:
            return iter(texts), TextPlace()
        place = TextPlace(**state.meta["place"])
        documents = iter(texts)
        if skip(documents, place.documents) != place.rolling:
            on_change(
                "The text is not the one that the interrupted run has read: begun from its start."
            )
            return iter(texts), TextPlace()
        self._moments.restore(state.tensors)
        return documents, place

    def _interrupted(self, on_change: Callable[[str], None]) -> Cached | None:
        """Return the state of an interrupted run, if this run can go on from it."""
        try:
            state = self._store.cached(_PARTIAL)
        except IntegrityError as error:
            on_change(f"What an interrupted run has left is damaged, begun anew: {error}")
            return None
        if state is None:
            return None
        tokens, limit = state.meta["place"]["tokens"], self._job.tokens_max
        if state.meta["identity"] != self._identity:
            on_change("An interrupted run over other blocks or another model is given up.")
        elif limit is not None and tokens > limit:
            on_change(f"An interrupted run over {tokens} tokens, more than wanted, is given up.")
        else:
            return state
        return None

    def _next_checkpoint(self) -> float:
        return time.monotonic() + self._job.passes.checkpoint_seconds

    def _tokens(self, text: str) -> Piece:
        ids: list[int] = self._edited.tokenizer(text, verbose=False)["input_ids"]
        if (token := self._edited.base.unknown_token(ids)) is not None:
            raise TextError(
                f"The model does not know the token {token!r}, which a text has: the tokenizer "
                "names more than the model's embeddings hold. Leave that text out."
            )
        return ids


def name_of(block: int) -> str:
    """Return the name of a block's statistics in the cache."""
    return f"statistics/block-{block}"
