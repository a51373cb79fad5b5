"""The key statistics of one base model in a store's cache: read from it, or collected into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from continual.embedded import embedded
from continual.errors import CeditError, ModelError
from continual.execution import Executor
from continual.execution.local import LOCAL
from continual.model import EditedModel
from continual.settings import StoreSettings
from continual.statistics import packs
from continual.statistics.collecting import CollectingProgress, Collection, Job, name_of
from continual.statistics.packs import PackedBlock, PackError
from continual.statistics.windows import Passes
from store import Store
from store.cache import Cached
from store.errors import IntegrityError, StoreError

OWN_TOKENS = 2**16
"""Tokens collected of a model's own text. For the atlas 32·d_ff: all facts, and some again."""

_REMEDY = "run `cedit train stats --text FILE`"


class StatisticsError(CeditError):
    """Key statistics that are missing or unusable."""

    def __init__(self, block: int, cause: str) -> None:
        super().__init__(f"The key statistics of block {block} {cause}: {_REMEDY}.")
        self.block = block


@dataclass(frozen=True)
class KeyStatistics:
    """The second moment of the keys of one block."""

    block: int
    count: int  # keys seen
    second_moment: Tensor  # [d_ff, d_ff] float64, symmetric: the mean of k kᵀ
    convergence: float
    """‖A − B‖ / ‖C₀‖ (Frobenius), A and B the second moments over every other piece of text.

    Where pieces are independent, C₀ is about half as far from that of endless such text. 1 where
    there was only one piece.
    """
    path: Path  # the file that holds them
    digest: str  # SHA-256 of that file: it names the statistics behind an edit

    def __post_init__(self) -> None:
        if not bool(self.second_moment.isfinite().all()):
            raise StatisticsError(self.block, "hold NaN or infinity")


def _ignore(_: str) -> None:
    """Drop a notice."""


class Statistics:
    """The key statistics of one base model, in a store's cache.

    ``texts`` is the model's own text: its training text, or text that it writes itself. Missing
    statistics are collected from it when they are needed; without it they are an error.
    """

    def __init__(
        self,
        store: Store,
        edited: EditedModel,
        texts: Iterable[str] | None = None,
        executor: Executor = LOCAL,
    ) -> None:
        self._store = store
        self._edited = edited
        self.texts = texts
        self._executor = executor

    @classmethod
    def of(cls, store: Store, edited: EditedModel, executor: Executor = LOCAL) -> Statistics:
        """Return the statistics of a store's base model: an embedded one brings its own text."""
        model = embedded(StoreSettings.of(store.settings).model.path)
        return cls(store, edited, None if model is None else model.texts(), executor)

    def get(self, block: int) -> KeyStatistics:
        """Return the statistics of a block from the cache, collected now if they are missing.
        Raises StatisticsError if there is no text to collect them from."""
        self.require([block])
        return self._kept(block)

    def require(self, blocks: Iterable[int]) -> None:
        """Collect the missing statistics of some blocks in one pass over the model's own text.
        Raises StatisticsError if they are missing and the model has no text."""
        pending = [block for block in blocks if not self.has(block)]
        if not pending:
            return
        if self.texts is None:
            self._kept(pending[0])
        assert self.texts is not None
        for _ in self.collect(self.texts, pending, tokens_max=OWN_TOKENS):
            pass

    def has(self, block: int) -> bool:
        """Tell whether the statistics of a block are in the cache."""
        try:
            self._kept(block)
        except StatisticsError:
            return False
        return True

    def collect(
        self,
        texts: Iterable[str],
        blocks: Iterable[int] | None = None,
        *,
        tokens_max: int | None = None,
        passes: Passes | None = None,
        on_change: Callable[[str], None] = _ignore,
    ) -> Iterator[CollectingProgress]:
        """Sum up the keys of some blocks, all unless named, in one pass over the text, and store
        the statistics of each when the text ends or ``tokens_max`` tokens are read.

        An interrupted run resumes, to the same bits, if model, blocks and text are the same;
        ``on_change`` is called if they are not. ``texts`` yields the same documents each time that
        it is iterated, one by one: it is never held whole. Memory and checkpoints take 2·d_ff²
        float64 numbers for each block.

        Raises ModelError for keys that are not finite, CeditError for a text without tokens.
        """
        if isinstance(texts, Iterator):
            raise TypeError("texts may be read from its beginning twice: give no iterator")
        numbers = range(self._edited.anatomy.block_count) if blocks is None else blocks
        ordered_blocks = tuple(sorted(set(numbers)))
        job = Job(
            ordered_blocks,
            tokens_max,
            self._fitting(passes or Passes()),
            self._made_for(ordered_blocks),
        )
        return Collection(self._store, self._edited, job, self._executor).run(texts, on_change)

    # -- packs, for other stores of the same base model

    def pack(self, path: Path, blocks: Sequence[int]) -> str:
        """Write the statistics of these blocks to a file for other stores; see `packs`. Return the
        file's SHA-256. Raises StatisticsError if some are missing."""
        self._made_for(blocks)
        entries = [(block, self._found(block)) for block in sorted(set(blocks))]
        packed = [
            PackedBlock(block, entry.tensors["second_moment"], entry.meta, entry.digest)
            for block, entry in entries
        ]
        return packs.write(path, self._edited.base.fingerprint, packed)

    def take_in(self, path: Path, blocks: Sequence[int] | None = None) -> list[int]:
        """Put the statistics of a pack into the cache, of these blocks or of all that it has, in
        the place of earlier ones; return the blocks. They have the digests of where they come
        from. Raises PackError, before anything is replaced, for a pack that is damaged, is of
        another base model, or lacks a block."""
        packed = {entry.block: entry for entry in packs.read(path, self._edited.base.fingerprint)}
        numbers = sorted(packed if blocks is None else set(blocks))
        for block in numbers:
            if block not in packed:
                listing = ", ".join(map(str, sorted(packed)))
                raise PackError(path, f"has the blocks {listing}, and not block {block}")
            self._require_sound(path, packed[block])
        for block in numbers:
            moment = packed[block].moment
            self._store.put_cached(name_of(block), {"second_moment": moment}, packed[block].meta)
        return numbers

    def _require_sound(self, path: Path, packed: PackedBlock) -> None:
        """Raise PackError if a block of a pack is not as it was written, or of another FFN."""
        block = packed.block
        if packed.meta.get("made_for") != self._made_for([block]):
            raise PackError(path, f"has statistics of block {block} of another base or FFN")
        try:
            digest = Store.cached_digest({"second_moment": packed.moment}, packed.meta)
        except StoreError as error:
            raise PackError(path, f"is damaged at block {block} ({error})") from error
        if digest != packed.digest:
            raise PackError(
                path,
                f"is damaged: the statistics of block {block} have the digest {digest[:12]}, and "
                f"{packed.digest[:12]} were written",
            )

    def _fitting(self, passes: Passes) -> Passes:
        """Return passes with pieces that the model can read."""
        context = self._edited.base.context_tokens_max or passes.piece_tokens_max
        return replace(passes, piece_tokens_max=min(passes.piece_tokens_max, context))

    # -- the kept statistics

    def _kept(self, block: int) -> KeyStatistics:
        entry = self._found(block)
        return KeyStatistics(
            block,
            entry.meta["count"],
            entry.tensors["second_moment"],
            entry.meta["convergence"],
            entry.path,
            entry.digest,
        )

    def _found(self, block: int) -> Cached:
        """Return the cached set of a block, checked to be of this model and whole."""
        made_for = self._made_for([block])
        try:
            entry = self._store.cached(name_of(block))
        except IntegrityError as error:
            cause = f"are damaged (cache/{error.object}: {error.problem})"
            raise StatisticsError(block, cause) from error
        if entry is None:
            raise StatisticsError(block, f"are not in {self._store.cache / 'statistics'}")
        if entry.meta.get("made_for") != made_for:
            raise StatisticsError(block, "were made for another base model or another FFN")
        moment = entry.tensors.get("second_moment")
        width = self._edited.anatomy.ffn_width
        if moment is None or moment.shape != (width, width) or moment.dtype != torch.float64:
            raise StatisticsError(block, f"are damaged (no float64 matrix [{width}, {width}])")
        return entry

    def _made_for(self, blocks: Sequence[int]) -> dict[str, Any]:
        """Return the base model and the sites that the keys belong to.

        Raises ModelError for a block that the model does not have, and for a model without FFNs.
        """
        anatomy = self._edited.anatomy
        anatomy.require_ffn()
        for block in blocks:
            if not 0 <= block <= anatomy.last:
                raise ModelError(f"The model has no block {block}: choose of 0 to {anatomy.last}.")
        sites = [anatomy.path(block, str(anatomy.down)) for block in blocks]
        return {"base": self._edited.base.fingerprint, "sites": sites}
