"""Words of texts: whether an input names a record's subject, and the rest of the input's words.

Knows spelling: case, accents and small misspellings make no difference, and function words count
for little. Leaves meaning to the encoder.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

PLACEHOLDER = "this"  # stands for the subject in a masked text
ALIKE_MIN = (
    0.9  # difflib's ratio from which two words are spellings of one; Austria, Australia: .875
)
ALIKE_LETTERS_MIN = 5  # shorter words are compared letter by letter
FUNCTION_WEIGHT = 0.05  # weight of a word such as "of"; any other has 1

_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_SEGMENT_WORDS_MIN = 2  # a shorter one belongs to the sentence before it
_FUNCTION_TEXT = (
    "a an and are as at be by de del der des di do does el for from had has have he her his how i "
    "in is it its la le les of on or s she that the their they this to van von was were what when "
    "where which who whom whose why will with you your q answer"
)
_FUNCTION_WORDS = frozenset(_FUNCTION_TEXT.split())


@dataclass(frozen=True)
class Word:
    """A word of a text, and its place."""

    folded: str
    start: int
    end: int
    is_capital: bool

    @property
    def weight(self) -> float:
        """The weight of the word: function words count for little."""
        return FUNCTION_WEIGHT if self.folded in _FUNCTION_WORDS else 1.0


@dataclass(frozen=True)
class Presence:
    """The extent to which a text names a subject."""

    share: float  # of the subject's words, by weight and likeness, that the text has
    spans: tuple[tuple[int, int], ...]  # of the text's characters that name it
    is_part: bool  # the name that the text has goes on: "Galata" in "Galata Tower"


def words(text: str) -> list[Word]:
    """Return the words of a text, in order."""
    return [
        Word(folded(match[0]), match.start(), match.end(), match[0][0].isupper())
        for match in _WORD.finditer(text)
    ]


def folded(text: str) -> str:
    """Return the text without case and accents."""
    characters = unicodedata.normalize("NFKD", text)
    return "".join(c for c in characters if not unicodedata.combining(c)).casefold()


def segment(text: str) -> str:
    """Return the last sentence of a text, which asks, without the sentences before it."""
    parts = [part.strip() for part in _SENTENCE_END.split(text)]
    sentence = ""
    for part in reversed(parts):
        sentence = f"{part} {sentence}".strip()
        if sum(word.weight == 1 for word in words(sentence)) >= _SEGMENT_WORDS_MIN:
            break
    return sentence or text


def presence(subject: Sequence[Word], text: str) -> Presence:
    """Measure how far a text has a subject's words, in any order."""
    text_words = words(text)
    total = sum(word.weight for word in subject)
    matches = [_places(word, text_words) for word in subject]
    if not any(places for places, _ in matches) or not total:
        return Presence(0.0, (), False)
    share = sum(
        word.weight * likeness for word, (_, likeness) in zip(subject, matches, strict=True)
    )
    positions = {place for places, _ in matches for place in places}
    runs = [
        run for run in _runs(positions, text_words) if any(text_words[i].weight == 1 for i in run)
    ]
    runs = runs or _runs(positions, text_words)
    spans = tuple((text_words[run[0]].start, text_words[run[-1]].end) for run in runs)
    return Presence(share / total, spans, all(_goes_on(run, text_words) for run in runs))


def masked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Return the text with a placeholder for each span."""
    for start, end in reversed(spans):
        text = text[:start] + PLACEHOLDER + text[end:]
    return text


def names(text: str) -> list[Word]:
    """Return the capitalised words after the first: the subject of a text that names none."""
    return [word for word in words(text)[1:] if word.is_capital and word.weight == 1]


def overlap(one: Sequence[Word], other: Sequence[Word]) -> float:
    """Return the share of one text's words, by weight, that the other has."""
    spellings = {word.folded for word in other}
    total = sum(word.weight for word in one)
    return sum(word.weight for word in one if word.folded in spellings) / total if total else 0.0


def _places(word: Word, there: Sequence[Word]) -> tuple[list[int], float]:
    """Return the places of a word in a text, and the likeness of their spelling, in [0, 1]."""
    likenesses = [_likeness(word.folded, candidate.folded) for candidate in there]
    likeness_max = max(likenesses, default=0.0)
    if likeness_max < ALIKE_MIN:
        return [], 0.0
    return [i for i, likeness in enumerate(likenesses) if likeness == likeness_max], likeness_max


def _likeness(one: str, other: str) -> float:
    if one == other:
        return 1.0
    if min(len(one), len(other)) < ALIKE_LETTERS_MIN or one[0] != other[0]:
        return 0.0
    if 2 * min(len(one), len(other)) < ALIKE_MIN * (len(one) + len(other)):
        return 0.0
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def _runs(places: set[int], there: Sequence[Word]) -> list[list[int]]:
    """Group neighbouring places."""
    runs: list[list[int]] = []
    for place in sorted(places):
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _goes_on(run: Sequence[int], there: Sequence[Word]) -> bool:
    """Tell whether a capitalised word stands right before or behind. A text's first word, always
    capitalised, does not count."""
    start, end = run[0] - 1, run[-1] + 1
    extends_left = start > 0 and there[start].is_capital and there[start].weight == 1
    extends_right = end < len(there) and there[end].is_capital and there[end].weight == 1
    return extends_left or extends_right
