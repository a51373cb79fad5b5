"""A request as tokens: its prompts and probes, encoded once, before all else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from continual.errors import RequestError
from continual.recheck.ledger import EDIT, HELD_OUT, LOCALITY, PORTABILITY, REPHRASE, LedgerEntry
from continual.requests import Request
from continual.tasks import Encoding, Task

ExpectedAnswers = tuple[tuple[int, ...], ...]
"""The tokens of the answers to a request's locality prompts before its edit, in order."""


@dataclass(frozen=True)
class EncodedRequest:
    """A request whose every text fits the task's limits."""

    request: Request
    learned: tuple[Encoding, ...]  # the prompt in each of its forms, then the rephrases
    held_out: tuple[Encoding, ...]
    locality: tuple[Encoding, ...]  # with the answers that the request gives
    portability: tuple[Encoding, ...]

    @property
    def forms(self) -> int:
        """The number of the first encodings of `learned` that must all be right for the request to
        be right."""
        return len(self.request.asked)

    @property
    def required(self) -> tuple[Encoding, ...]:
        """The prompt in each of its forms; the request is right if all of them are."""
        return self.learned[: self.forms]

    @property
    def required_rows(self) -> int:
        """The number of rows of `required`; they come first among the rows of `learned`."""
        return sum(len(encoding.targets) for encoding in self.required)

    @cached_property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    def learned_entries(self) -> list[LedgerEntry]:
        """Return the prompt in its forms and the rephrases, as probes."""
        return [
            *self._entries(EDIT, self.required),
            *self._entries(REPHRASE, self.learned[self.forms :]),
        ]

    def other_entries(self, expected: ExpectedAnswers) -> list[LedgerEntry]:
        """Return all other probes; locality prompts are right if answered as `expected`."""
        locality = [
            encoding.answered(tokens)
            for encoding, tokens in zip(self.locality, expected, strict=True)
        ]
        return [
            *self._entries(HELD_OUT, self.held_out),
            *self._entries(LOCALITY, locality),
            *self._entries(PORTABILITY, self.portability),
        ]

    def _entries(self, role: str, encodings: Sequence[Encoding]) -> list[LedgerEntry]:
        return [LedgerEntry(self.id, role, i, encoding) for i, encoding in enumerate(encodings)]


def encode(request: Request, task: Task) -> EncodedRequest:
    """Encode all texts of a request as tokens. Raises RequestError if one breaks a limit."""
    _require_few_probes(request, task.limits.probes_max)
    target = request.target_new
    return EncodedRequest(
        request,
        learned=tuple(task.encode(p, target) for p in (*request.asked, *request.rephrases)),
        held_out=tuple(task.encode(p, target) for p in request.held_out_rephrases),
        locality=tuple(task.encode(p.prompt, p.answer) for p in request.locality),
        portability=tuple(task.encode(p.prompt, p.answer) for p in request.portability),
    )


def _require_few_probes(request: Request, probes_max: int) -> None:
    groups = (
        request.rephrases,
        request.held_out_rephrases,
        request.locality,
        request.portability,
    )
    count = sum(map(len, groups))
    if count > probes_max:
        raise RequestError(
            f"The request has {count} rephrases and probes, more than the {probes_max} allowed: "
            "leave some out, or raise probes_max under [task] in cedit.toml."
        )
