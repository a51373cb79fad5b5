"""Passages that state the very fact that an edit corrects: no edit has to leave these alone.

Such a passage names the subject, and the base goes on with the answer that is being corrected. Left
in memory it would hold an edit back from every other wording of its own fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from continual.naming import names
from continual.prompts import Prompt, compared, normalised


@dataclass(frozen=True)
class CorrectedFact:
    """A request's fact as it stood before the edit."""

    subject: str  # as it is compared; empty where the request names none
    words: frozenset[str]  # of the prompt
    answers: frozenset[int]  # tokens with which the model began its answer, or the old target does

    @classmethod
    def of(cls, prompt: Prompt, subject: str | None, answers: Sequence[int]) -> CorrectedFact:
        """The fact of a prompt, its subject where it is known, and the old answer's tokens."""
        words = frozenset(compared(prompt).split())
        return cls(normalised(subject or ""), words, frozenset(answers))

    def is_about(self, text: str) -> bool:
        """Tell whether a text names the subject; without one, half of the prompt's words."""
        if self.subject:
            return names(text, self.subject)
        shared = self.words & set(text.split())
        return 2 * len(shared) >= len(self.words)
