"""Recognises passages that state the very fact that an edit corrects: the edit may change these.

Such a passage names the subject, and the base continues with the answer to be corrected. Left in
memory it would hold an edit back from every other wording of its own fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from continual.naming import names
from continual.picture_marks import keys_in, without_marks
from continual.prompts import Prompt, compared, normalised


@dataclass(frozen=True)
class CorrectedFact:
    """A request's fact as it stood before the edit."""

    subject: str  # normalised; empty if the request names none
    words: frozenset[str]  # of the prompt
    answers: frozenset[int]  # first tokens of the model's answer, or of the old target
    pictures: frozenset[str] = frozenset()  # keys of those that the prompt shows

    @classmethod
    def of(cls, prompt: Prompt, subject: str | None, answers: Sequence[int]) -> CorrectedFact:
        """Make the fact from a prompt, its subject if known, and the old answer's first tokens."""
        text = compared(prompt)
        words = frozenset(without_marks(text).split())
        return cls(normalised(subject or ""), words, frozenset(answers), keys_in(text))

    def is_about(self, text: str) -> bool:
        """Tell whether a text names the subject; without one, half of the prompt's words. A text
        that shows other pictures is about something else."""
        if keys_in(text) != self.pictures:
            return False
        text = without_marks(text)
        if self.subject:
            return names(text, self.subject)
        overlap = self.words & set(text.split())
        return 2 * len(overlap) >= len(self.words)
