"""Tells which edit spoke at a token: by the rows beside the weights that opened, or by the record
that was read.

A neuron of the last block, or a row that opens on the last token read, speaks when the next token
is chosen. Rows further down may open on a token of the prompt, such as the subject's last one, and
change all that follows. An edit in the weights has a part in every token, and in none alone: such
edits are counted. Reads the owners of a state's patches once, layer by layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from continual.effects import CODEBOOK, CONTEXTS, GATES, LOOKUP, MEMORY, NEURONS, SUBJECTS
from continual.effects.hearing import HeardGates, OpenRows
from continual.effects.places import GatePlace
from continual.memory.routing import Route
from continual.open_store import OpenStore
from continual.patches import Patch
from continual.serving.asks import Spoke, SpokenToken
from store import BlobRef, Revision

NEURON = "neuron"
_KINDS = {
    **dict.fromkeys((NEURONS, SUBJECTS, CONTEXTS, GATES), NEURON),
    CODEBOOK: CODEBOOK,
    LOOKUP: LOOKUP,
}
Voice = tuple[str, GatePlace]
"""The kind of an effect's rows, and their place: one effect of a model."""
Owners = Mapping[Voice, Sequence[str]]
"""The request of each row of an effect, in their order; "" for an unknown one."""


@dataclass(frozen=True)
class PatchVoices:
    """The requests whose rows a patch brings, by effect, and of its edits in the weights."""

    rows: Owners
    in_weights: frozenset[str]


class Voices:
    """Names the requests behind the rows of an open store's model."""

    def __init__(self, opened: OpenStore) -> None:
        self._opened = opened
        self._patches: dict[BlobRef, PatchVoices] = {}

    @contextmanager
    def heard(self) -> Iterator[Sequence[HeardGates]]:
        """Collect the rows that open at each pass within `with`."""
        with self._opened.edited.gates_heard() as heard:
            yield heard

    def at(self, revision: Revision) -> tuple[Owners, int]:
        """Return the request of each row by effect, in their order, and the number of requests in
        the weights."""
        owners: dict[Voice, list[str]] = defaultdict(list)
        in_weights: set[str] = set()
        for layer in self._opened.store.layers(revision):
            if layer.patch is not None:
                voices = self._of(layer.patch)
                in_weights |= voices.in_weights
                for voice, requests in voices.rows.items():
                    owners[voice] += requests
        return owners, len(in_weights)

    def _of(self, ref: BlobRef) -> PatchVoices:
        if ref not in self._patches:
            self._patches[ref] = self._read(self._opened.patches(ref))
        return self._patches[ref]

    def _read(self, parts: Sequence[Patch]) -> PatchVoices:
        rows: dict[Voice, tuple[str, ...]] = {}
        in_weights: set[str] = set()
        for part in parts:
            owners = part.owners or ("",) * part.rows
            if (kind := _kind(part.beside().keys())) is not None:
                (place,) = part.reach.gates
                row_owners = ("",) * part.rows if part.is_shared else owners
                rows[kind, place] = (*rows.get((kind, place), ()), *row_owners)
            if part.in_parameters(self._opened.edited.anatomy):
                in_weights |= set(owners)
        return PatchVoices(rows, frozenset(in_weights))


def _kind(names: Iterable[str]) -> str | None:
    """Return the kind of rows with these names in `BESIDE`; None for rows that do not open."""
    return next((_KINDS[name] for name in names if name in _KINDS), None)


@dataclass(frozen=True)
class SpokenWords:
    """The tokens of a prompt and of its answer at which edits spoke."""

    prompt: tuple[SpokenToken, ...] = ()
    answer: tuple[SpokenToken, ...] = ()


def spoken_words(
    prompt: Sequence[str], answer: Sequence[str], heard: Sequence[HeardGates], owners: Owners
) -> SpokenWords:
    """Return the tokens at which edits spoke, given the texts of the tokens."""
    edits: dict[int, dict[tuple[str, str], Spoke]] = defaultdict(dict)
    last = len(prompt) - 1
    for gates in heard:
        for position, spoke in _openings(gates, owners, len(prompt)):
            if position >= last or gates.reaches_on:
                known = edits[position].get((spoke.request, spoke.kind))
                if known is None or known.activation < spoke.activation:
                    edits[position][spoke.request, spoke.kind] = spoke
    return SpokenWords(
        _told(prompt[:last], edits, 0),
        _told(answer, edits, last),
    )


def _told(
    words: Sequence[str], edits: Mapping[int, Mapping[tuple[str, str], Spoke]], start: int
) -> tuple[SpokenToken, ...]:
    """Return the tokens with edits among some that begin at a position."""
    return tuple(
        SpokenToken(place, word, tuple(edits[start + place].values()))
        for place, word in enumerate(words)
        if start + place in edits
    )


def _openings(gates: HeardGates, owners: Owners, length: int) -> Iterator[tuple[int, Spoke]]:
    """Yield the openings of an effect's rows with the positions of their tokens in prompt and
    answer. The first pass reads the prompt; each later one a token more, or all again."""
    kind = _kind(gates.kinds) or min(gates.kinds)  # of a kind that came later: its own name
    names = owners.get((kind, gates.place), ())
    for step, opened in enumerate(gates.passes):
        start = length + step - opened.length
        for token, row, strength in _entries(opened):
            yield start + token, Spoke(names[row] if row < len(names) else "", kind, strength)


def _entries(opened: OpenRows) -> Iterator[tuple[int, int, float]]:
    columns = (opened.tokens, opened.rows, opened.strengths)
    yield from zip(*(column.tolist() for column in columns), strict=True)


def read_words(answer: Sequence[str], route: Route) -> SpokenWords:
    """Return the tokens of an answer that the record of a route gives: all of them."""
    edit = Spoke(route.record.id, MEMORY, float(route.score))
    return SpokenWords(
        answer=tuple(SpokenToken(place, word, (edit,)) for place, word in enumerate(answer))
    )
