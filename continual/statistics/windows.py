"""Text in windows: whole documents together, cut into pieces that a model can read.

A window has at least so many tokens. Its pieces go through the model in passes of nearly one
length, and the text alone decides what is in a pass, so that a run goes on behind any window as if
nothing had happened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True)
class Passes:
    """How text is cut and batched, in tokens, and how often a run is made safe."""

    piece_tokens_max: int = 1024  # or what the model reads at once, where that is less
    pass_tokens_max: int = 4096  # padding included
    window_tokens: int = 2**15
    checkpoint_seconds: float = 300.0


@dataclass(frozen=True)
class Place:
    """How much of a text was read, and the hash chain of its documents."""

    documents: int = 0
    pieces: int = 0
    tokens: int = 0
    rolling: str = hashlib.sha256().digest_size * "00"

    def after(self, text: str, pieces: int, tokens: int) -> Place:
        """The place behind one more document."""
        return Place(
            self.documents + 1, self.pieces + pieces, self.tokens + tokens, _chained(self, text)
        )


def _chained(place: Place, text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return hashlib.sha256(bytes.fromhex(place.rolling) + digest).hexdigest()


Piece = Sequence[int]  # token ids


@dataclass(frozen=True)
class Window:
    """Some documents, and the place behind them."""

    even: tuple[Piece, ...]  # the pieces with an even number in the whole text
    odd: tuple[Piece, ...]
    place: Place
    is_whole: bool  # not cut short by the end of the text or by the tokens wanted


def windows(
    documents: Iterator[str],
    start: Place,
    encode: Callable[[str], Piece],
    passes: Passes,
    tokens_max: int | None,
) -> Iterator[Window]:
    """The windows of the documents behind ``start``, up to ``tokens_max`` tokens in all."""
    size = passes.piece_tokens_max
    place, pieces = start, []
    while place.tokens != tokens_max and (text := next(documents, None)) is not None:
        ids = encode(text)
        if tokens_max is not None:
            ids = ids[: tokens_max - place.tokens]
        cut = [ids[first : first + size] for first in range(0, len(ids), size)]
        pieces += cut
        place = place.after(text, len(cut), len(ids))
        is_full = place.tokens - start.tokens >= passes.window_tokens
        if is_full and place.tokens != tokens_max:
            yield _window(pieces, start, place, is_whole=True)
            start, pieces = place, []
    if pieces:
        yield _window(pieces, start, place, is_whole=False)


def _window(pieces: Sequence[Piece], start: Place, place: Place, is_whole: bool) -> Window:
    shift = start.pieces % 2
    return Window(tuple(pieces[shift::2]), tuple(pieces[1 - shift :: 2]), place, is_whole)


def skip(documents: Iterator[str], count: int) -> str:
    """The hash chain of the next so many documents, or of all where there are fewer."""
    place = Place()
    for text in islice(documents, count):
        place = place.after(text, 0, 0)
    return place.rolling
