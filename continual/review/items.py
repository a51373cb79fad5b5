"""A correction in the queue: its content, its state, and who did what to it, when and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from continual.errors import CeditError
from continual.prompts import Prompt, prompt_json, read_prompt
from continual.requests import Request
from continual.review.states import WAYS

WHO_CHARACTERS_MAX = 64
WHY_CHARACTERS_MAX = 2000


class WrongState(CeditError):
    """A change that the state of a correction does not allow."""


@dataclass(frozen=True)
class Event:
    """A change of a correction."""

    state: str
    at: str  # ISO 8601
    who: str
    why: str = ""


@dataclass(frozen=True)
class Hold:
    """A correction that a person has open, until a time."""

    who: str
    until: float  # seconds since 1970


@dataclass(frozen=True)
class QueueItem:
    """A correction on its way through the queue."""

    number: int
    state: str
    prompt: Prompt
    request: Request | None  # None while nobody has said what is right
    source: str = ""  # api, feedback, file, dashboard
    origin: Mapping[str, Any] = field(default_factory=dict)
    """The answer that it is about: receipt, answer, verdict, fingerprint, revision."""
    events: tuple[Event, ...] = ()
    editor: str | None = None  # the chain to apply it by; None: the store's
    duplicate_of: int | None = None
    since: int | None = None  # the journal's length when it was begun to be applied
    revision: str | None = None  # that has its edit
    proof: Mapping[str, Any] = field(default_factory=dict)
    hold: Hold | None = None

    @property
    def made_at(self) -> str:
        """The time when it came."""
        return self.events[0].at

    @property
    def changed_at(self) -> str:
        """The time of its last change."""
        return self.events[-1].at

    def moved(self, state: str, who: str, why: str = "", **changes: Any) -> Self:
        """Return the item in another state. Raises WrongState if there is no way to it."""
        if state not in WAYS[self.state]:
            ways = ", ".join(sorted(WAYS[self.state]))
            raise WrongState(
                f"Correction {self.number} is {self.state}, and cannot become {state}: from there "
                f"it may become {ways}."
            )
        return replace(self.noted(state, who, why), **changes)

    def noted(self, state: str, who: str, why: str = "") -> Self:
        """Return the item with another event, at the present time."""
        event = Event(state, now(), who[:WHO_CHARACTERS_MAX], why[:WHY_CHARACTERS_MAX])
        return replace(self, state=state, events=(*self.events, event))

    def to_json(self) -> dict[str, Any]:
        """Return the record that the store keeps."""
        record: dict[str, Any] = {
            "number": self.number,
            "state": self.state,
            "prompt": prompt_json(self.prompt),
            "request": None if self.request is None else self.request.to_json(),
            "source": self.source,
            "origin": dict(self.origin),
            "events": [vars(event) for event in self.events],
            "editor": self.editor,
            "duplicate_of": self.duplicate_of,
            "since": self.since,
            "revision": self.revision,
            "proof": dict(self.proof),
            "hold": None if self.hold is None else vars(self.hold),
        }
        return {name: value for name, value in record.items() if value not in (None, {}, "")}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read a record of the store."""
        request, hold = record.get("request"), record.get("hold")
        return cls(
            number=int(record["number"]),
            state=record["state"],
            prompt=read_prompt(record["prompt"]),
            request=None if request is None else Request.from_json(request),
            source=record.get("source", ""),
            origin=record.get("origin", {}),
            events=tuple(Event(**event) for event in record["events"]),
            editor=record.get("editor"),
            duplicate_of=record.get("duplicate_of"),
            since=record.get("since"),
            revision=record.get("revision"),
            proof=record.get("proof", {}),
            hold=None if hold is None else Hold(**hold),
        )


def now() -> str:
    """Return the present time, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
