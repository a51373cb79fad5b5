"""Pictures inside prompts: a mark in a text, and the ids that stand for it among tokens.

A prompt names a picture by a mark, `<|picture:DIGEST|>`, at the place where the model sees it, so
that whatever keeps, compares or quotes a prompt keeps its pictures. Among tokens a picture is a run
of ids above all of a vocabulary: each has the beginning of the picture's digest, and its place in
the run, so that equal ids are the same part of the same picture. Knows texts and numbers; leaves
the pictures themselves to `pictures`, and what a model sees of them to `tasks`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

DIGEST_DIGITS = 64
KEY_DIGITS = 12
"""The hexadecimal digits of a digest that a picture's ids hold."""
SHOWN_DIGITS = 8
FIRST_ID = 1 << 62
"""The lowest id of a picture; no vocabulary has as many tokens."""

_PLACE_BITS = 12
PLACES_MAX = 1 << _PLACE_BITS
"""The highest number of places that one picture can take among tokens."""
_MARK = re.compile(r"<\|picture:([0-9a-f]{12,64})\|>")
OPENING = "<|picture:"
PLACEHOLDER = "<image>"
"""The text that people write where a picture stands."""


def mark(digest: str) -> str:
    """Return the mark of a picture, or of its key."""
    return f"<|picture:{digest}|>"


def digests_in(text: str) -> tuple[str, ...]:
    """Return the digests in a text's marks, in their order."""
    return tuple(_MARK.findall(text))


def shows(text: str) -> bool:
    """Tell whether a text may show a picture: cheaper than a look at its marks."""
    return OPENING in text


def keys_in(text: str) -> frozenset[str]:
    """Return the keys of the pictures that a text shows."""
    return frozenset(digest[:KEY_DIGITS] for digest in digests_in(text))


def without_marks(text: str) -> str:
    """Return the text without its pictures."""
    return _MARK.sub("", text) if OPENING in text else text


def leading(text: str) -> tuple[str, str]:
    """Split a text into the marks that it begins with, and the rest."""
    end = 0
    while match := _MARK.match(text, end):
        end = match.end()
    return text[:end], text[end:]


def put_before(prefix: str, text: str) -> str:
    """Return the text with another one before it, behind the pictures that it begins with: a model
    sees these first."""
    pictures, words = leading(text)
    return f"{pictures}{prefix}{words}"


def replaced(text: str, replacement: str) -> str:
    """Return the text with another text in the place of each mark."""
    return _MARK.sub(lambda _: replacement, text)


def substituted(text: str, digests: Sequence[str]) -> str:
    """Return the text with these pictures in the place of its own, the first of them for those
    beyond; without any, the text shows none."""
    if not digests:
        return without_marks(text)
    left = iter(digests)
    return _MARK.sub(lambda _: mark(next(left, digests[0])), text)


def shown(text: str) -> str:
    """Return the text as a person reads it, with the beginning of a picture's digest for each."""
    return _MARK.sub(lambda match: f"[picture {match[1][:SHOWN_DIGITS]}] ", text)


# -- ids


def picture_ids(digest: str, count: int) -> tuple[int, ...]:
    """Return the ids of a picture that takes `count` places. Raises ValueError for too many."""
    if not 0 < count <= PLACES_MAX:
        raise ValueError(f"a picture takes {count} places; it can take 1 to {PLACES_MAX}")
    first = FIRST_ID | int(digest[:KEY_DIGITS], 16) << _PLACE_BITS
    return tuple(range(first, first + count))


def key_of(picture_id: int) -> str:
    """Return the key of the picture that an id is a part of."""
    return f"{(picture_id - FIRST_ID) >> _PLACE_BITS:0{KEY_DIGITS}x}"


def place_of(picture_id: int) -> int:
    """Return the place of an id in its picture."""
    return picture_id & (PLACES_MAX - 1)


def text_ids(ids: Sequence[int]) -> list[int]:
    """Return the tokens of a sequence without its pictures."""
    return [token for token in ids if token < FIRST_ID]


def picture_keys(ids: Sequence[int]) -> tuple[str, ...]:
    """Return the keys of the pictures in a sequence, in the order in which they begin."""
    return tuple(key for key, _ in _parts(ids) if key)


def packed(ids: Sequence[int]) -> list[int | list[int]]:
    """Return the tokens of a sequence as JSON has them: a picture's run as [first id, number]."""
    if max(ids, default=0) < FIRST_ID:
        return list(ids)
    return [
        item
        for key, part in _parts(ids)
        for item in ([[part[0], len(part)]] if key else list(part))
    ]


def unpacked(items: Sequence[Any]) -> tuple[int, ...]:
    """Return the tokens that `packed` gave."""
    tokens: list[int] = []
    for item in items:
        if isinstance(item, int):
            tokens.append(item)
        else:
            first, count = item
            tokens += range(first, first + count)
    return tuple(tokens)


def spelled(tokenizer: Any, ids: Sequence[int], **options: Any) -> str:
    """Return the text of tokens, without the pictures among them; `options` are of `decode`."""
    return str(tokenizer.decode(text_ids(ids), **options))


def marked(tokenizer: Any, ids: Sequence[int], **options: Any) -> str:
    """Return the text of tokens, with the mark of its key in the place of each picture."""
    if max(ids, default=0) < FIRST_ID:
        return str(tokenizer.decode(list(ids), **options))
    return "".join(
        mark(key) if key else str(tokenizer.decode(list(part), **options))
        for key, part in _parts(ids)
    )


def _parts(ids: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the stretches of a sequence, each with its picture's key; empty for text. A picture
    that is shown twice running is two stretches."""
    shown_before = 0  # pictures that begin at or before the token

    def stretch(token: int) -> tuple[str, int]:
        nonlocal shown_before
        if token < FIRST_ID:
            return "", 0
        shown_before += place_of(token) == 0
        return key_of(token), shown_before

    for (key, _), part in groupby(ids, stretch):
        yield key, tuple(part)
