"""Key statistics: C₀ = E[k kᵀ] of the key activations of a block, over text, on the bare base.

A key is the input of a block's ``down`` matrix at one token of a text, padding left out. ROME
(Meng et al. 2022, equation 2) and MEMIT (Meng et al. 2023, equations 14 and 15) weigh by C₀ what
an edit may do to everything else. Knows how the moments are summed, how a run that was killed goes
on to the same bits, and where they are kept; leaves what a text is to ``texts``, and what becomes
of C₀ to the editors.

Documents are read in *windows*: whole documents, with at least so many tokens together, cut into
pieces that the model can read. The pieces of a window go through the model in passes of nearly one
length. The text alone decides what is in a pass, so a run goes on behind any window as if nothing
had happened.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from continual import hooks
from continual.base import ATLAS
from continual.errors import CeditError, ModelError
from continual.model import EditedModel
from continual.passes.partial import logits_of
from continual.settings import StoreSettings
from continual.site import length_sorted
from continual.tasks import Encoding, Question
from continual.texts import AtlasTexts, TextError
from store import Store
from store.cache import Cached
from store.errors import IntegrityError

OWN_TOKENS = 2**16
"""What is collected of a model's own text. The atlas: over a statement of every fact, 32·d_ff."""

_PARTIAL = "statistics/partial"
_TILE = 512  # rows of a moment that are summed at once
_REMEDY = "run `cedit train stats --text FILE`"


class StatisticsError(CeditError):
    """Key statistics that are not there, or not to be used."""

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
    digest: str  # SHA-256 of that file: which statistics an edit was made with

    def __post_init__(self) -> None:
        if not bool(self.second_moment.isfinite().all()):
            raise StatisticsError(self.block, "hold NaN or infinity")


@dataclass(frozen=True)
class Passes:
    """How text is cut and batched, in tokens, and how often a run is made safe."""

    piece_tokens_max: int = 1024  # or what the model reads at once, where that is less
    pass_tokens_max: int = 4096  # padding included
    window_tokens: int = 2**15
    checkpoint_seconds: float = 300.0


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    documents: int
    tokens: int


def _ignore(_: str) -> None:
    """A notice, unheard."""


class Statistics:
    """The key statistics of one base model, in a store's cache.

    ``texts`` is the model's own text, if it has any: statistics that are not there are collected
    from it when they are asked for. Without it they are an error.
    """

    def __init__(
        self, store: Store, edited: EditedModel, texts: Iterable[str] | None = None
    ) -> None:
        self._store = store
        self._edited = edited
        self.texts = texts

    @classmethod
    def of(cls, store: Store, edited: EditedModel) -> Statistics:
        """The statistics of a store's base model: the atlas brings its own text."""
        is_atlas = StoreSettings.of(store.settings).model.path == ATLAS
        return cls(store, edited, AtlasTexts() if is_atlas else None)

    def get(self, block: int) -> KeyStatistics:
        """The statistics of a block, read from the disk. Raises StatisticsError without any."""
        try:
            return self._kept(block)
        except StatisticsError:
            if self.texts is None:
                raise
        for _ in self.collect(self.texts, [block], tokens_max=OWN_TOKENS):
            pass
        return self._kept(block)

    def collect(
        self,
        texts: Iterable[str],
        blocks: Iterable[int] | None = None,
        *,
        tokens_max: int | None = None,
        passes: Passes | None = None,
        on_change: Callable[[str], None] = _ignore,
    ) -> Iterator[Progress]:
        """Sum up the keys of some blocks, all unless named, in one pass over the text, and keep
        the statistics of each when the text ends or ``tokens_max`` tokens are seen.

        A run that was interrupted is gone on with, to the same bits, where model, blocks and text
        are the same; ``on_change`` is told where they are not. ``texts`` gives the same documents
        each time that it is iterated, one by one: it is never held whole. Memory and checkpoints
        take 2·d_ff² float64 numbers for each block.

        Raises ModelError for keys that are not finite, CeditError for a text without tokens.
        """
        if isinstance(texts, Iterator):
            raise TypeError("texts may be read from its beginning twice: give no iterator")
        named = range(self._edited.anatomy.block_count) if blocks is None else blocks
        wanted = tuple(sorted(set(named)))
        job = _Job(wanted, tokens_max, self._fitting(passes or Passes()), self._made_for(wanted))
        return _Collection(self._store, self._edited, job).run(texts, on_change)

    def _fitting(self, passes: Passes) -> Passes:
        """Pieces that the model can read."""
        context = self._edited.base.context_tokens_max or passes.piece_tokens_max
        return replace(passes, piece_tokens_max=min(passes.piece_tokens_max, context))

    # -- what is kept

    def _kept(self, block: int) -> KeyStatistics:
        found = self._found(block)
        return KeyStatistics(
            block,
            found.meta["count"],
            found.tensors["second_moment"],
            found.meta["convergence"],
            found.path,
            found.digest,
        )

    def _found(self, block: int) -> Cached:
        """What is cached for a block, once it is seen to be of this model and whole."""
        made_for = self._made_for([block])
        try:
            found = self._store.cached(_name(block))
        except IntegrityError as error:
            cause = f"are damaged (cache/{error.object}: {error.problem})"
            raise StatisticsError(block, cause) from error
        if found is None:
            raise StatisticsError(block, f"are not in {self._store.cache / 'statistics'}")
        if found.meta.get("made_for") != made_for:
            raise StatisticsError(block, "were made for another base model or another FFN")
        moment = found.tensors.get("second_moment")
        width = self._edited.anatomy.ffn_width
        if moment is None or moment.shape != (width, width) or moment.dtype != torch.float64:
            raise StatisticsError(block, f"are damaged (no float64 matrix [{width}, {width}])")
        return found

    def _made_for(self, blocks: Sequence[int]) -> dict[str, Any]:
        """Whose keys these are. Raises ModelError for a block that the model has not."""
        anatomy = self._edited.anatomy
        for block in blocks:
            if not 0 <= block <= anatomy.last:
                raise ModelError(f"The model has no block {block}: choose of 0 to {anatomy.last}.")
        sites = [anatomy.path(block, anatomy.down) for block in blocks]
        return {"base": self._edited.base.fingerprint, "sites": sites}


def _name(block: int) -> str:
    return f"statistics/block-{block}"


# --- reading text ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What is to be collected. ``made_for`` is whose keys."""

    blocks: tuple[int, ...]
    tokens_max: int | None
    passes: Passes
    made_for: Mapping[str, Any]

    def identity(self, dtype: torch.dtype) -> dict[str, Any]:
        """What must be the same for a run to go on where another was interrupted."""
        cut = asdict(self.passes)
        del cut["checkpoint_seconds"]
        return {"made_for": dict(self.made_for), "dtype": str(dtype), "passes": cut}


@dataclass(frozen=True)
class _Place:
    """How much of a text was read, and the hash chain of its documents."""

    documents: int = 0
    pieces: int = 0
    tokens: int = 0
    rolling: str = hashlib.sha256().digest_size * "00"

    def after(self, text: str, pieces: int, tokens: int) -> _Place:
        """The place behind one more document."""
        return _Place(
            self.documents + 1, self.pieces + pieces, self.tokens + tokens, _chained(self, text)
        )


def _chained(place: _Place, text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return hashlib.sha256(bytes.fromhex(place.rolling) + digest).hexdigest()


Piece = Sequence[int]  # token ids


@dataclass(frozen=True)
class _Window:
    """Some documents, and the place behind them."""

    even: tuple[Piece, ...]  # the pieces with an even number in the whole text
    odd: tuple[Piece, ...]
    place: _Place
    is_whole: bool  # not cut short by the end of the text or by the tokens wanted


def _windows(
    documents: Iterator[str],
    start: _Place,
    encode: Callable[[str], Piece],
    job: _Job,
) -> Iterator[_Window]:
    """The windows of the documents behind ``start``."""
    size = job.passes.piece_tokens_max
    place, pieces = start, []
    while place.tokens != job.tokens_max and (text := next(documents, None)) is not None:
        ids = encode(text)
        if job.tokens_max is not None:
            ids = ids[: job.tokens_max - place.tokens]
        cut = [ids[first : first + size] for first in range(0, len(ids), size)]
        pieces += cut
        place = place.after(text, len(cut), len(ids))
        is_full = place.tokens - start.tokens >= job.passes.window_tokens
        if is_full and place.tokens != job.tokens_max:
            yield _window(pieces, start, place, is_whole=True)
            start, pieces = place, []
    if pieces:
        yield _window(pieces, start, place, is_whole=False)


def _window(pieces: Sequence[Piece], start: _Place, place: _Place, is_whole: bool) -> _Window:
    shift = start.pieces % 2
    return _Window(tuple(pieces[shift::2]), tuple(pieces[1 - shift :: 2]), place, is_whole)


# --- summing keys ---------------------------------------------------------------------------------


class _Moments:
    """Σ k kᵀ over the even and over the odd pieces, for some blocks of one model.

    Of every sum only the upper triangle counts; below it stands what fell into a tile.
    """

    def __init__(self, edited: EditedModel, blocks: Sequence[int]) -> None:
        self._edited = edited
        anatomy, width = edited.anatomy, edited.anatomy.ffn_width
        self._downs = {block: anatomy.down_module(edited.model, block) for block in blocks}
        self._sums = {  # [2, d_ff, d_ff]
            block: torch.zeros(2, width, width, dtype=torch.float64, device=_summing_device(down))
            for block, down in self._downs.items()
        }
        self._counts = [0, 0]

    @torch.inference_mode()
    def add(self, half: int, pieces: Sequence[Piece]) -> None:
        """One pass over some pieces, which ends behind the last block wanted."""
        inputs, real = self._inputs(pieces)

        def see(block: int, call: hooks.Call) -> None:
            keys = call.input.flatten(0, -2)[real.to(call.input.device)]
            _add_squares(self._sums[block][half], keys)

        with (
            self._edited.bare(),
            hooks.watched(self._downs, see),
            hooks.cut_short(self._downs[max(self._downs)]),
        ):
            hooks.run_until_cut(lambda: logits_of(self._edited.model, inputs))
        self._counts[half] += int(real.sum())

    def require_finite(self) -> None:
        """Raises ModelError for sums that a key with NaN or infinity has gone into."""
        for block, sums in self._sums.items():
            if not bool(sums.diagonal(dim1=-2, dim2=-1).isfinite().all()):
                raise ModelError(
                    f"The keys of block {block} hold NaN or infinity: the model's numbers "
                    "overflow in this text. Make the store with --dtype float32 or bfloat16."
                )

    def mean(self, block: int) -> tuple[Tensor, float]:
        """The second moment of a block, and its convergence; see ``KeyStatistics``."""
        even, odd = (_symmetric(half) for half in self._sums[block].cpu())
        whole = (even + odd).div_(sum(self._counts))
        distance = even.div_(max(1, self._counts[0])).sub_(odd.div_(max(1, self._counts[1])))
        norm = whole.norm().item()
        return whole, distance.norm().item() / norm if norm else 0.0

    def tensors(self) -> dict[str, Tensor]:
        """All of the state."""
        sums = {_tensor_name(block): sums for block, sums in self._sums.items()}
        return {**sums, "counts": torch.tensor(self._counts)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a state that `tensors` gave."""
        for block, sums in self._sums.items():
            sums.copy_(tensors[_tensor_name(block)])
        self._counts = tensors["counts"].tolist()

    def _inputs(self, pieces: Sequence[Piece]) -> tuple[dict[str, Tensor], Tensor]:
        """A batch padded on the right, and which of its positions [B·T] are real."""
        pad = self._edited.base.pad
        rows = [torch.tensor(piece) for piece in pieces]
        ids = pad_sequence(rows, batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(piece) for piece in pieces])
        real = torch.arange(ids.shape[1]) < lengths[:, None]
        inputs = {"input_ids": ids, "attention_mask": real.long()}
        device = self._edited.device
        return {name: tensor.to(device) for name, tensor in inputs.items()}, real.flatten()


def _summing_device(down: torch.nn.Module) -> torch.device:
    """Where the keys are, if float64 is known there."""
    device = next(down.parameters()).device
    return torch.device("cpu") if device.type == "mps" else device


def _add_squares(total: Tensor, keys: Tensor) -> None:
    """Add k kᵀ of keys [n, d_ff] to the upper triangle of a sum, in float64."""
    wide = keys.to(total.device).double()
    for first in range(0, len(total), _TILE):
        rows = wide[:, first : first + _TILE]
        total[first : first + _TILE, first:].addmm_(rows.T, wide[:, first:])


def _symmetric(total: Tensor) -> Tensor:
    """A sum of which the upper triangle is given."""
    return total.triu() + total.triu(1).T


def _tensor_name(block: int) -> str:
    return f"block-{block}"


class _Collection:
    """One run: text through the model, sums to the disk now and then, statistics in the end."""

    def __init__(self, store: Store, edited: EditedModel, job: _Job) -> None:
        if edited.anatomy.encoder is not None:
            raise ModelError("Key statistics are collected for decoders only: choose one.")
        self._store = store
        self._edited = edited
        self._job = job
        self._moments = _Moments(edited, job.blocks)
        self._identity = job.identity(next(edited.model.parameters()).dtype)

    def run(self, texts: Iterable[str], on_change: Callable[[str], None]) -> Iterator[Progress]:
        """All of it, shown pass by pass."""
        documents, place = self._begin(texts, on_change)
        due = self._next_checkpoint()
        for window in _windows(documents, place, self._tokens, self._job):
            yield from self._add(window, place)
            place = window.place
            if window.is_whole and time.monotonic() >= due:
                meta = {"identity": self._identity, "place": asdict(place)}
                self._store.put_cached(_PARTIAL, self._moments.tensors(), meta)
                due = self._next_checkpoint()
        self._keep(place)

    def _add(self, window: _Window, start: _Place) -> Iterator[Progress]:
        tokens = start.tokens
        for half, pieces in enumerate((window.even, window.odd)):
            for batch in _batches(pieces, self._job.passes.pass_tokens_max):
                self._moments.add(half, batch)
                tokens += sum(map(len, batch))
                yield Progress(start.documents, tokens)
        self._moments.require_finite()

    def _keep(self, place: _Place) -> None:
        """Put the statistics of every block in the place of what was there."""
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
            self._store.put_cached(_name(block), {"second_moment": moment}, meta)
        self._store.drop_cached(_PARTIAL)

    # -- going on

    def _begin(
        self, texts: Iterable[str], on_change: Callable[[str], None]
    ) -> tuple[Iterator[str], _Place]:
        """The documents still to be read, and the place behind those that are summed already."""
        partial = self._interrupted(on_change)
        if partial is None:
            return iter(texts), _Place()
        place = _Place(**partial.meta["place"])
        documents = iter(texts)
        if _skip(documents, place.documents) != place.rolling:
            on_change(
                "The text is not the one that the interrupted run has read: begun from its start."
            )
            return iter(texts), _Place()
        self._moments.restore(partial.tensors)
        return documents, place

    def _interrupted(self, on_change: Callable[[str], None]) -> Cached | None:
        """What an interrupted run has left, where this run can go on with it."""
        try:
            partial = self._store.cached(_PARTIAL)
        except IntegrityError as error:
            on_change(f"What an interrupted run has left is damaged, begun anew: {error}")
            return None
        if partial is None:
            return None
        tokens, wanted = partial.meta["place"]["tokens"], self._job.tokens_max
        if partial.meta["identity"] != self._identity:
            on_change("An interrupted run over other blocks or another model is given up.")
        elif wanted is not None and tokens > wanted:
            on_change(f"An interrupted run over {tokens} tokens, more than wanted, is given up.")
        else:
            return partial
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


def _skip(documents: Iterator[str], count: int) -> str:
    """The hash chain of the next so many documents, or of all where there are fewer."""
    place = _Place()
    for text in islice(documents, count):
        place = place.after(text, 0, 0)
    return place.rolling


def _batches(pieces: Sequence[Piece], tokens_max: int) -> list[list[Piece]]:
    """The pieces in passes of nearly one length."""
    encodings = [Encoding(Question(tuple(piece)), (), ()) for piece in pieces]
    return [[pieces[i] for i in batch] for batch in length_sorted(encodings, tokens_max)]
