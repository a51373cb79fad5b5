"""A request as tokens: what is edited and what is measured, encoded once, before all else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from continual.recheck.ledger import EDIT, HELD_OUT, LOCALITY, PORTABILITY, REPHRASE, Entry
from continual.requests import Request
from continual.tasks import Encoding, Task

Expected = tuple[tuple[int, ...], ...]
"""The tokens with which a request's locality prompts were answered before its edit, in order."""


@dataclass(frozen=True)
class Candidate:
    """A request whose every text fits the task's limits."""

    request: Request
    learned: tuple[Encoding, ...]  # the prompt, then the rephrases
    held_out: tuple[Encoding, ...]
    locality: tuple[Encoding, ...]  # with the answers that the request gives
    portability: tuple[Encoding, ...]

    @cached_property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def judged(self) -> tuple[Encoding, ...]:
        """The encodings that have to be right for the edit to be."""
        return self.learned[:1]

    def learned_entries(self) -> list[Entry]:
        """The prompt and the rephrases, as probes."""
        edit = Entry(self.id, EDIT, 0, self.learned[0])
        return [edit, *self._entries(REPHRASE, self.learned[1:])]

    def other_entries(self, expected: Expected) -> list[Entry]:
        """All other probes; the locality prompts must go on being answered as expected."""
        locality = [
            encoding.answered(tokens)
            for encoding, tokens in zip(self.locality, expected, strict=True)
        ]
        return [
            *self._entries(HELD_OUT, self.held_out),
            *self._entries(LOCALITY, locality),
            *self._entries(PORTABILITY, self.portability),
        ]

    def _entries(self, role: str, encodings: Sequence[Encoding]) -> list[Entry]:
        return [Entry(self.id, role, i, encoding) for i, encoding in enumerate(encodings)]


def encode(request: Request, task: Task) -> Candidate:
    """All texts of a request as tokens. Raises RequestError where one breaks a limit."""
    target = request.target_new
    return Candidate(
        request,
        learned=tuple(task.encode(p, target) for p in (request.prompt, *request.rephrases)),
        held_out=tuple(task.encode(p, target) for p in request.held_out_rephrases),
        locality=tuple(task.encode(p.prompt, p.answer) for p in request.locality),
        portability=tuple(task.encode(p.prompt, p.answer) for p in request.portability),
    )
