"""Text in windows: whole documents together, cut into pieces that a model can read.

A window has at least `Passes.window_tokens` tokens. Its pieces go through the model in passes of
nearly one length. The text alone decides the content of a pass, so that a run goes on behind any
window as if nothing had happened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True)
class Passes:
    """The sizes of pieces, passes and windows, in tokens, and the time between checkpoints."""

    piece_tokens_max: int = 1024  # or the model's context, if that is less
    pass_tokens_max: int = 4096  # padding included
    window_tokens: int = 2**15
    checkpoint_seconds: float = 300.0


@dataclass(frozen=True)
class TextPlace:
    """The amount of a text that was read, and the hash chain of its documents."""

    documents: int = 0
    pieces: int = 0
    tokens: int = 0
    rolling: str = hashlib.sha256().digest_size * "00"

    def after(self, text: str, pieces: int, tokens: int) -> TextPlace:
        """Return the place behind one more document."""
        return TextPlace(
            self.documents + 1, self.pieces + pieces, self.tokens + tokens, _chained(self, text)
        )


def _chained(place: TextPlace, text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return hashlib.sha256(bytes.fromhex(place.rolling) + digest).hexdigest()


Piece = Sequence[int]  # token ids


@dataclass(frozen=True)
class Window:
    """Some documents, and the place behind them."""

    even: tuple[Piece, ...]  # the pieces with an even number in the whole text
    odd: tuple[Piece, ...]
    place: TextPlace
    is_whole: bool  # not cut short by the end of the text or by the tokens wanted


def windows(
    documents: Iterator[str],
    start: TextPlace,
    encode: Callable[[str], Piece],
    passes: Passes,
    tokens_max: int | None,
) -> Iterator[Window]:
    """Yield the windows of the documents behind ``start``, up to ``tokens_max`` tokens in all."""
    size = passes.piece_tokens_max
    place, pieces = start, []
    while place.tokens != tokens_max and (text := next(documents, None)) is not None:
        ids = encode(text)
        if tokens_max is not None:
            ids = ids[: tokens_max - place.tokens]
        parts = [ids[offset : offset + size] for offset in range(0, len(ids), size)]
        pieces += parts
        place = place.after(text, len(parts), len(ids))
        is_full = place.tokens - start.tokens >= passes.window_tokens
        if is_full and place.tokens != tokens_max:
            yield _window(pieces, start, place, is_whole=True)
            start, pieces = place, []
    if pieces:
        yield _window(pieces, start, place, is_whole=False)


def _window(pieces: Sequence[Piece], start: TextPlace, place: TextPlace, is_whole: bool) -> Window:
    shift = start.pieces % 2
    return Window(tuple(pieces[shift::2]), tuple(pieces[1 - shift :: 2]), place, is_whole)


def skip(documents: Iterator[str], count: int) -> str:
    """Read past `count` documents, or all where there are fewer, and return their hash chain."""
    place = TextPlace()
    for text in islice(documents, count):
        place = place.after(text, 0, 0)
    return place.rolling
