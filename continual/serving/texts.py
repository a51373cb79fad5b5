"""Readable pieces of an answer that grows token by token, up to a stop text.

A token may be half a letter, and a piece of text may begin a stop text: both are held back until it
is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LEAD_TOKENS = 6
"""Tokens of the prompt that the answer's first token is read behind: some tokenizers drop the blank
at the beginning of a text."""
_BROKEN = "\ufffd"  # a letter of which only some bytes are there


class TextPieces:
    """The text of tokens, piece by piece (as vLLM and text-generation-inference read a stream)."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-LEAD_TOKENS:])
        self._start, self._read = 0, len(self._tokens)  # the tokens before _read are told

    def take(self, token: int) -> str:
        """Add a token; return the text that it completes, or nothing."""
        self._tokens.append(token)
        return self._told(is_last=False)

    def rest(self) -> str:
        """Return the text that was held back, when no token follows."""
        return self._told(is_last=True)

    def _told(self, *, is_last: bool) -> str:
        before = self._text(self._tokens[self._start : self._read])
        text = self._text(self._tokens[self._start :])
        if len(text) <= len(before) or (text.endswith(_BROKEN) and not is_last):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return text[len(before) :]

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class UpToStop:
    """Text up to the first of some stop texts, which is left out."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_done = False

    def take(self, piece: str) -> str:
        """Add a piece; return the text that no stop text can begin in any more."""
        if self.is_done:
            return ""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.is_done, self._held = True, ""
            return text[: min(places)]
        kept = self._begun(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def rest(self) -> str:
        """Return the text that was held back, when no piece follows."""
        text, self._held = self._held, ""
        return text

    def _begun(self, text: str) -> int:
        """Return the length of the longest end of a text that begins a stop text."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
