"""The result of a trace, as JSON keeps it: scores, and one map of scores for each kind.

A map has the score of every restored token and block. Its indirect effect is that score less the
corrupted one; the total effect is the clean score less the corrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

DIGITS = 7  # behind the point, of a score that is kept

Grid = tuple[tuple[float, ...], ...]
"""A row for each token of the prompt, with a number for each block that was traced."""

FIRST, MIDDLE, LAST, AFTER, FURTHER, END = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after",
    "further tokens",
    "last token",
)
GROUPS = (FIRST, MIDDLE, LAST, AFTER, FURTHER, END)

TRACED, UNKNOWN, WEAK = "traced", "unknown", "weak"
"""A fact whose states were restored; one that the model does not answer; one whose total effect is
too small."""


@dataclass(frozen=True)
class TraceScore:
    """The score of an answer: the probability of its first token, and the mean log-probability of
    all of its tokens, each given the ones before. Means over the draws of noise."""

    probability: float
    log_probability: float

    def rounded(self) -> TraceScore:
        """Return the score as it is kept."""
        return TraceScore(round(self.probability, DIGITS), round(self.log_probability, DIGITS))


@dataclass(frozen=True)
class TraceMap:
    """The scores with one kind of output restored at each token and block."""

    kind: str
    window: int  # blocks that are restored together; 1 for states
    blocks: tuple[int, ...]  # that were traced
    probability: Grid
    log_probability: Grid

    def peak(self) -> tuple[int, int]:
        """Return the token and the block with the highest probability, the first of equals."""
        cells = [
            (probability, token, block)
            for token, row in enumerate(self.probability)
            for block, probability in zip(self.blocks, row, strict=True)
        ]
        _, token, block = max(cells, key=lambda cell: cell[0])
        return token, block

    def at(self, token: int, block: int) -> float:
        """Return the probability with a token's output restored at a block that was traced."""
        return self.probability[token][self.blocks.index(block)]

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read a map from its JSON object."""
        grids = {name: _grid(record[name]) for name in ("probability", "log_probability")}
        return cls(record["kind"], record["window"], tuple(record["blocks"]), **grids)


@dataclass(frozen=True)
class SecondSeed:
    """Scores of another seed's noise: at each kind's peak, to be held against the first seed's."""

    corrupted: TraceScore
    peaks: Mapping[str, float]  # probability by kind

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read the scores from their JSON object."""
        return cls(TraceScore(**record["corrupted"]), record["peaks"])


@dataclass(frozen=True)
class FactTrace:
    """The trace of one fact on one state of the model."""

    prompt: Any  # a text, or messages
    subject: str
    answer: str
    said: str  # the model's own tokens where the answer is predicted
    tokens: tuple[str, ...]  # of the prompt
    subject_places: tuple[int, ...]
    mention: tuple[int, ...]  # the subject's tokens at its last place
    answer_tokens: tuple[str, ...]
    is_known: bool  # the model says the answer
    outcome: str  # TRACED, UNKNOWN or WEAK
    clean: TraceScore
    corrupted: TraceScore | None  # None for a fact that was not corrupted, as it is not known
    maps: tuple[TraceMap, ...] = ()
    second: SecondSeed | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)  # case, relation: of the source

    @property
    def total_effect(self) -> float:
        """The clean probability less the corrupted one."""
        return self.clean.probability - self.floor

    @property
    def floor(self) -> float:
        """The corrupted probability; the clean one for a fact that was not corrupted."""
        return (self.corrupted or self.clean).probability

    def map(self, kind: str) -> TraceMap | None:
        """Return the map of a kind; None if it was not traced."""
        return next((m for m in self.maps if m.kind == kind), None)

    def effect(self, kind: str, token: int, block: int) -> float:
        """Return the indirect effect of a kind at a place."""
        found = self.map(kind)
        assert found is not None
        return found.at(token, block) - self.floor

    def groups(self) -> dict[str, tuple[int, ...]]:
        """Return the prompt's tokens by group. A subject of one token has its last token alone; a
        token that ends both subject and prompt counts as the subject's; tokens before the subject's
        last place are in no group."""
        last, size = self.mention[-1], len(self.tokens)
        subject = self.mention
        behind = range(last + 1, size - 1)
        return {
            FIRST: subject[:1] if len(subject) > 1 else (),
            MIDDLE: subject[1:-1],
            LAST: (last,),
            AFTER: tuple(behind[:1]),
            FURTHER: tuple(behind[1:]),
            END: (size - 1,) if last < size - 1 else (),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the cache keeps and `cedit trace --json` prints."""
        effect = None if self.corrupted is None else round(self.total_effect, DIGITS)
        return {**asdict(self), "total_effect": effect}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read a trace from its JSON object."""
        parts = {k: v for k, v in record.items() if k != "total_effect"}
        for name in ("tokens", "subject_places", "mention", "answer_tokens"):
            parts[name] = tuple(parts[name])
        for name in ("clean", "corrupted"):
            if parts[name] is not None:
                parts[name] = TraceScore(**parts[name])
        parts["maps"] = tuple(map(TraceMap.from_json, parts["maps"]))
        if parts["second"] is not None:
            parts["second"] = SecondSeed.from_json(parts["second"])
        return cls(**parts)


def _grid(rows: Sequence[Sequence[float]]) -> Grid:
    return tuple(tuple(row) for row in rows)
