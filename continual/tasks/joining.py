"""Joins an answer to its prompt, with a blank between them or without one.

Prompts and answers are taken to the letter. Between "The capital of Peru is" and "Lima" people
leave out the blank, so plain text gets one; a chat turn, code and scripts without blanks do not.
Knows characters alone. Leaves tokens to the tasks, and the choice to the store's `[task]` table:

    joining = "in-place"   every store made today: this module's rule, and tokens in their place
    joining = "spaced"     or no such line, in older stores: outer whitespace is taken off, and a
                           blank stands before every answer
    blank = "auto"         this module's rule; "always" and "never" override it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from continual.errors import CeditError

IN_PLACE, SPACED = "in-place", "spaced"
AUTO, ALWAYS, NEVER = "auto", "always", "never"

_OPENING = "([{<«‹“‘„‚¿¡/\\_@#$£€¥~^`|"  # a word stands right behind these
_CLOSING = ",;)]}»›”’"  # these stand right behind a word
_TYING = "-–—=+*&'\""  # a word stands right behind these if they stand right behind a word
_QUOTES = "'\""

_WITHOUT_BLANKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals of Han
    (0x3000, 0x30FF),  # their punctuation, Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31A0, 0x31FF),  # more Bopomofo, strokes, small Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),  # more Myanmar
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),  # Han for compatibility
    (0xFE30, 0xFE4F),  # forms of their punctuation
    (0xFF00, 0xFF9F),  # wide Latin and punctuation, narrow Katakana
    (0x1B000, 0x1B16F),  # more Kana
    (0x20000, 0x3FFFF),  # more Han
)


def is_in_place(settings: Mapping[str, Any]) -> bool:
    """Tell whether a `[task]` table asks for joining in place. Raises CeditError for an unknown
    word."""
    return _chosen(settings, "joining", SPACED, (IN_PLACE, SPACED)) == IN_PLACE


def blank_setting(settings: Mapping[str, Any]) -> str:
    """Return the `blank` of a `[task]` table. Raises CeditError for an unknown word."""
    return _chosen(settings, "blank", AUTO, (AUTO, ALWAYS, NEVER))


def blank_between(prompt: str, answer: str, setting: str = AUTO) -> str:
    """Return the text between a plain prompt and its answer: a blank, or nothing."""
    if setting != AUTO:
        return " " if setting == ALWAYS else ""
    return " " if _needs_blank(prompt, answer) else ""


def _needs_blank(prompt: str, answer: str) -> bool:
    """Tell whether plain text has a blank between the two.

    It has none if either side brings whitespace, behind an opening character (a bracket, a quote, a
    slash, an underscore), behind a character that ties two words (a hyphen, an equals sign) without
    a blank before it, before a closing character, and in scripts that are written without blanks.
    """
    prompt_end, answer_start = prompt[-1], answer[:1]
    if prompt_end.isspace() or answer_start.isspace():
        return False
    if prompt_end in _OPENING or answer_start in _CLOSING:
        return False
    if prompt_end in _QUOTES and _opens_quote(prompt):
        return False
    if prompt_end in _TYING and prompt_end not in _QUOTES and not prompt[-2:-1].isspace():
        return False
    if is_without_blanks(prompt_end):
        return False
    return not (
        answer_start and is_without_blanks(answer_start) and any(map(is_without_blanks, prompt))
    )


def is_without_blanks(character: str) -> bool:
    """Tell whether a character is of a script that is written without blanks between words."""
    code = ord(character)
    return code >= _WITHOUT_BLANKS[0][0] and any(a <= code <= b for a, b in _WITHOUT_BLANKS)


def _opens_quote(prompt: str) -> bool:
    """Tell whether the straight quote at the end opens: nothing, a blank or an opening character
    stands before it."""
    neighbour = prompt[-2:-1]
    return not neighbour or neighbour.isspace() or neighbour in _OPENING or neighbour in "=:,"


def _chosen(settings: Mapping[str, Any], key: str, usual: str, words: tuple[str, ...]) -> str:
    word = settings.get(key, usual)
    if word not in words:
        raise CeditError(f"[task] {key} = {word!r}: it is one of {', '.join(words)}.")
    return str(word)
