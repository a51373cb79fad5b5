"""Shares of changed, right and leaking answers, from the answers before the stream and behind it.

Knows answers as tokens and as text; leaves models to others.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Self

from benchmarks.real_model.questions import (
    CONTINUATION,
    EDIT,
    FLUENCY,
    GENERAL,
    NEIGHBOUR,
    PARAPHRASE,
    SAME_FACT,
    SUBJECT,
    StreamQuestion,
)

START_TOKENS = 3
NGRAM_WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # halved: Meng et al. 2022, section 3.4
UNEDITED = {NEIGHBOUR: "neighbours", SUBJECT: "subject", GENERAL: "general"}
"""Kinds of questions that no correction answers, and the names of their columns."""


@dataclass(frozen=True)
class WrittenAnswer:
    """The tokens of an answer, its text, and the text of its first tokens."""

    tokens: tuple[int, ...]
    text: str
    start: str


@dataclass(frozen=True)
class AnswerComparison:
    """A question with the base's answer and the answer of the model behind the stream."""

    question: StreamQuestion
    base: WrittenAnswer
    head: WrittenAnswer
    record: str | None = None  # the prompt of the correction in memory that was read
    agreement: float | None = None  # of CONTINUATION: the base's tokens that head says after them

    @property
    def is_right(self) -> bool:
        """True if the answer begins with the correction's target."""
        return says(self.head.text, self.question.target or "")

    @property
    def is_changed(self) -> bool:
        """True if any token differs."""
        return self.head.tokens != self.base.tokens

    @property
    def starts_otherwise(self) -> bool:
        """True if the first tokens spell another text."""
        return self.head.start != self.base.start

    @property
    def overlap(self) -> float | None:
        """The share of the base's tokens that head has in the same places."""
        if not self.base.tokens:
            return None
        pairs = zip(self.base.tokens, self.head.tokens, strict=False)
        return sum(a == b for a, b in pairs) / len(self.base.tokens)

    def leaked(self, targets: Iterable[str]) -> str | None:
        """The first target of the stream that head names and the base does not, or None."""
        return next(
            (t for t in targets if names(self.head.text, t) and not names(self.base.text, t)), None
        )

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Read the comparison back from JSON."""
        before, after = (
            WrittenAnswer(tuple(said["tokens"]), said["text"], said["start"])
            for said in (entry["base"], entry["head"])
        )
        question = StreamQuestion(**entry["question"])
        return cls(question, before, after, entry["record"], entry["agreement"])


def says(answer: str, target: str) -> bool:
    """Tell whether an answer begins with the target."""
    return answer.strip().startswith(target.strip())


def names(answer: str, target: str) -> bool:
    """Tell whether an answer has the target among its words."""
    return re.search(rf"(?<!\w){re.escape(target.strip())}(?!\w)", answer) is not None


def measures(comparisons: Sequence[AnswerComparison], targets: Iterable[str]) -> dict[str, Any]:
    """Return the columns of a run, by name; None if nothing was asked."""
    stream = list(dict.fromkeys(targets))
    of = {kind: [c for c in comparisons if c.question.kind == kind] for kind in _KINDS}
    row: dict[str, Any] = {
        "edits_right": _share(of[EDIT], lambda c: c.is_right),
        "paraphrases_right": _share(of[PARAPHRASE], lambda c: c.is_right),
        "continuation_given": _mean(c.agreement for c in of[CONTINUATION]),
        "continuation_free": _mean(c.overlap for c in of[CONTINUATION]),
        "fluency": fluency(of[FLUENCY]),
    }
    for kind, name in UNEDITED.items():
        row[f"{name}_changed"] = _share(of[kind], lambda c: c.is_changed)
        row[f"{name}_start"] = _share(of[kind], lambda c: c.starts_otherwise)
        row[f"{name}_leaks"] = _share(of[kind], lambda c: c.leaked(stream) is not None)
    row["same_fact_changed"] = _share(of[SAME_FACT], lambda c: c.is_changed)
    return row


def routing(comparisons: Sequence[AnswerComparison]) -> dict[str, Any]:
    """Return the shares of questions that the memory answers, by the record that was read."""
    edits = [c.question for c in comparisons if c.question.kind == EDIT]
    prompts = {question.case: question.prompt for question in edits}
    asked = [c for c in comparisons if c.question.kind == PARAPHRASE]
    own = [c for c in asked if c.record == prompts[c.question.case]]
    row: dict[str, Any] = {
        "paraphrases_own": _share(asked, lambda c: c in own),
        "paraphrases_other": _share(asked, lambda c: c.record is not None and c not in own),
        "own_right": _share(own, lambda c: c.is_right),
    }
    for kind, name in UNEDITED.items():
        of_kind = [c for c in comparisons if c.question.kind == kind]
        row[f"{name}_routed"] = _share(of_kind, lambda c: c.record is not None)
    return row


def fluency(comparisons: Sequence[AnswerComparison]) -> float | None:
    """Return the mean n-gram entropy of head's texts over that of the base's."""
    before = _mean(entropy(c.base.tokens) for c in comparisons)
    after = _mean(entropy(c.head.tokens) for c in comparisons)
    return None if not before or after is None else after / before


def entropy(tokens: Sequence[int]) -> float:
    """Return the weighted mean of the entropies, in bits, of a text's bigrams and trigrams."""
    weighted = [w * _ngram_entropy(tokens, n) for n, w in NGRAM_WEIGHTS.items()]
    return sum(weighted) / len(weighted)


def _ngram_entropy(tokens: Sequence[int], size: int) -> float:
    counts = Counter(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def _share(
    comparisons: Sequence[AnswerComparison], holds: Callable[[AnswerComparison], bool]
) -> float | None:
    return _mean(float(holds(comparison)) for comparison in comparisons)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


_KINDS = (EDIT, PARAPHRASE, NEIGHBOUR, SUBJECT, SAME_FACT, GENERAL, CONTINUATION, FLUENCY)
