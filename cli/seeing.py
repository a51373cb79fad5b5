"""Asks a model that sees around its corrections, before these and after.

Groups the questions around some requests: other words, other renderings, and what has to stay.
Every answer is free greedy decoding. Leaves the corrections to the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from continual.requests import Request
    from continual.session import Session

WORDINGS, RENDERINGS = "the same in new words", "on new renderings of the picture"
NO_PICTURE, RANDOM = "asked without the picture", "asked on a random picture"
STAYING = {
    "text": "a fact without a picture",
    "other picture": "another question on another picture",
    "alike picture": "the same question on the most alike picture",
    "other question": "another question on the same picture",
}
"""The groups of probes that are to be answered as before, by the names of the probes."""
LEARNED = (WORDINGS, RENDERINGS)
GROUPS = (*LEARNED, *STAYING.values(), NO_PICTURE, RANDOM)


@dataclass(frozen=True)
class SeenQuestion:
    """A question of a group; `target` is the new answer of its request."""

    group: str
    prompt: str
    target: str
    tokens_max: int

    @property
    def is_learned(self) -> bool:
        """True if the new answer is right; else the one before is."""
        return self.group in LEARNED


def questions(session: Session, requests: Sequence[Request]) -> list[SeenQuestion]:
    """Return the questions around some requests. Random pictures are those of other requests."""
    return [
        SeenQuestion(group, prompt, request.target_new, _tokens(session, prompt, answer))
        for place, request in enumerate(requests)
        for group, prompt, answer in _around(request, requests[place - 1])
    ]


def answers(session: Session, asked: Sequence[SeenQuestion]) -> list[str]:
    """Return the session's answer to each question."""
    return [session.ask(question.prompt, question.tokens_max) for question in asked]


def shares(
    asked: Sequence[SeenQuestion], before: Sequence[str], after: Sequence[str]
) -> dict[str, tuple[int, float]]:
    """Return the number of each group's questions, and the share that is as it should be: the new
    answer where it was learned, the answer from before elsewhere."""
    outcomes: dict[str, list[bool]] = {}
    for question, old, new in zip(asked, before, after, strict=True):
        expected = question.target if question.is_learned else old
        outcomes.setdefault(question.group, []).append(new.strip() == expected.strip())
    return {
        group: (len(outcomes[group]), sum(outcomes[group]) / len(outcomes[group]))
        for group in GROUPS
        if group in outcomes
    }


def _around(request: Request, other: Request) -> Iterator[tuple[str, str, str]]:
    """Yield (group, prompt, an answer) of the questions around a request."""
    from continual.picture_marks import digests_in, substituted

    prompt, target = str(request.prompt), request.target_new
    own = digests_in(prompt)
    for wording in map(str, request.held_out_rephrases):
        yield (WORDINGS if digests_in(wording) == own else RENDERINGS), wording, target
    for probe in request.locality:
        if probe.name in STAYING:
            yield STAYING[probe.name], str(probe.prompt), probe.answer
    yield NO_PICTURE, substituted(prompt, []), target
    if other is not request:
        yield RANDOM, substituted(prompt, digests_in(str(other.prompt))), target


def _tokens(session: Session, prompt: str, answer: str) -> int:
    """Return the number of tokens of an answer: a model without an end of its own goes on."""
    return len(session.task.encode(prompt, answer).targets) + 1
