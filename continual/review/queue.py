"""The queue in the store: every change is on the disk, whole, before anyone hears of it.

An item stands under its number, an idempotency key under its digest, both written in one
transaction. The process that writes the store has all items in memory.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from continual.errors import CeditError
from continual.prompts import Prompt
from continual.requests import Request
from continual.review.items import Hold, QueueItem, WrongState, now
from continual.review.states import (
    APPROVED,
    DECISIONS,
    DUPLICATE,
    FLAGGED,
    LIVE,
    OPEN,
    PENDING,
    REJECTED,
    STATES,
)
from store import Store
from store.errors import IntegrityError

ITEM, KEY = "item/", "key/"
_DIGITS = 12
HOLD_S = 600.0
ITEMS_MAX = 1_000_000
KEY_CHARACTERS_MAX = 256


class UnknownItem(CeditError):
    """There is no such correction in the queue."""

    exit_code = 2


class KeyReused(CeditError):
    """An idempotency key that came with another content before."""


class Held(CeditError):
    """A correction that somebody else has open."""


@dataclass(frozen=True)
class Proposal:
    """A correction as it is handed in."""

    prompt: Prompt
    request: Request | None  # None: nobody has said what is right
    who: str
    why: str = ""
    source: str = "api"
    origin: Mapping[str, Any] | None = None
    editor: str | None = None
    key: str | None = None  # of idempotency

    @classmethod
    def of(cls, request: Request, who: str, **more: Any) -> Proposal:
        """Return the proposal of a request."""
        return cls(request.prompt, request, who, **more)

    @property
    def digest(self) -> str:
        """The name of its content: a key stands for one content alone."""
        content = self.prompt if self.request is None else self.request.id
        return hashlib.sha256(repr((content, self.editor)).encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True)
class Added:
    """The item of a proposal, and whether it was there before under the proposal's key."""

    item: QueueItem
    is_repeat: bool


def _unheard(_: QueueItem) -> None:
    """Ignore a change."""


class CorrectionQueue:
    """The corrections of a store on their way; any thread may use it."""

    def __init__(self, store: Store) -> None:
        """Read the queue. Raises IntegrityError for a record that is none."""
        self._store = store
        self._turn = threading.RLock()
        self._items: dict[int, QueueItem] = {}
        self._numbers: dict[str, int] = {}  # of live items, by their requests' ids
        self.on_change: Callable[[QueueItem], None] = _unheard
        """Hears of every item that is on the disk in a new state; it may not wait."""
        for name, record in store.queue_entries(ITEM):
            try:
                self._take(QueueItem.from_json(record))
            except (KeyError, TypeError, ValueError, CeditError) as error:
                raise IntegrityError(
                    f"journal/queue/{name}", f"is no correction ({error})"
                ) from None

    # -- reading

    def __len__(self) -> int:
        return len(self._items)

    def get(self, number: int) -> QueueItem:
        """Return an item. Raises UnknownItem."""
        with self._turn:
            if number not in self._items:
                raise UnknownItem(f"There is no correction {number} in the queue.")
            return self._items[number]

    def items(self, states: Iterable[str] = STATES) -> list[QueueItem]:
        """Return the items in some states, in the order in which they came."""
        wanted = frozenset(states)
        with self._turn:
            return [item for item in self._items.values() if item.state in wanted]

    def counts(self) -> dict[str, int]:
        """Return the number of items by state."""
        with self._turn:
            counts = Counter(item.state for item in self._items.values())
        return {state: counts[state] for state in STATES}

    def of_request(self, identity: str) -> QueueItem | None:
        """Return the live item of a request's id, if there is one."""
        with self._turn:
            number = self._numbers.get(identity)
            return None if number is None else self._items[number]

    def next_approved(self) -> QueueItem | None:
        """Return the first item that is to be applied."""
        return next(iter(self.items({APPROVED})), None)

    # -- handing in

    def add(self, proposals: Sequence[Proposal]) -> list[Added]:
        """Take in proposals, durably and all at once.

        A proposal whose key was given before is answered by that item; one whose very content is on
        its way already, or in force by the queue, becomes a duplicate. Raises KeyReused.
        """
        with self._turn:
            records: dict[str, Mapping[str, Any]] = {}
            added: list[Added] = []
            fresh: list[QueueItem] = []
            for proposal in proposals:
                known = self._by_key(proposal, records)
                if known is not None:
                    number = int(known["item"])
                    earlier = next((i for i in fresh if i.number == number), None)
                    added.append(Added(earlier or self.get(number), is_repeat=True))
                    continue
                item = self._new_item(proposal, fresh)
                fresh.append(item)
                added.append(Added(item, is_repeat=False))
                records[_name(item.number)] = item.to_json()
                if proposal.key is not None:
                    entry = {"item": item.number, "digest": proposal.digest, "at": now()}
                    records[_key(proposal.key)] = entry
            if records:
                self._store.record_queue(records)
            for item in fresh:
                self._take(item)
        for item in fresh:
            self.on_change(item)
        return added

    def _by_key(
        self, proposal: Proposal, records: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, Any] | None:
        if proposal.key is None:
            return None
        name = _key(proposal.key)
        entry = records.get(name) or self._store.queue_entry(name)
        if entry is not None and entry["digest"] != proposal.digest:
            raise KeyReused(
                "This idempotency key came with another correction before: use a new key for each."
            )
        return entry

    def _new_item(self, proposal: Proposal, fresh: Sequence[QueueItem]) -> QueueItem:
        number = max(self._items, default=0) + len(fresh) + 1
        if number > ITEMS_MAX:
            raise CeditError("The queue is full: export the store, and begin another.")
        request = proposal.request
        earlier = None if request is None else self._earlier(request.id, fresh)
        state = FLAGGED if request is None else PENDING if earlier is None else DUPLICATE
        item = QueueItem(
            number,
            state,
            proposal.prompt,
            request,
            proposal.source,
            proposal.origin or {},
            editor=proposal.editor,
            duplicate_of=earlier,
        )
        return item.noted(state, proposal.who, proposal.why)

    def _earlier(self, identity: str, fresh: Sequence[QueueItem]) -> int | None:
        numbers = [i.number for i in fresh if i.request is not None and i.request.id == identity]
        return self._numbers.get(identity) or next(iter(numbers), None)

    # -- deciding

    def decide(
        self,
        numbers: Sequence[int],
        state: str,
        who: str,
        why: str = "",
        editor: str | None = None,
    ) -> list[QueueItem]:
        """Approve, reject or reopen items, all or none. Raises WrongState, Held, UnknownItem."""
        if state not in DECISIONS:
            raise WrongState(f"{state!r} is no decision: choose {', '.join(sorted(DECISIONS))}.")
        with self._turn:
            decided = [self._decided(number, state, who, why, editor) for number in numbers]
            return self._write(decided)

    def _decided(
        self, number: int, state: str, who: str, why: str, editor: str | None
    ) -> QueueItem:
        item = self._unheld(number, who)
        if item.request is None and state != REJECTED:
            raise WrongState(
                f"Correction {number} does not say what is right: give it the right answer first."
            )
        changes: dict[str, Any] = {"hold": None}
        if editor is not None:
            changes["editor"] = editor
        if state == APPROVED:
            changes |= {"since": None, "revision": None, "proof": {}}
        return item.moved(state, who, why, **changes)

    def amend(
        self, number: int, request: Request, who: str, why: str = "", editor: str | None = None
    ) -> QueueItem:
        """Give an open item another content. Raises WrongState, Held, UnknownItem."""
        with self._turn:
            item = self._unheld(number, who)
            if item.state not in OPEN:
                raise WrongState(
                    f"Correction {number} is {item.state}: only open ones are amended."
                )
            earlier = self._numbers.get(request.id)
            if earlier not in (None, number):
                raise WrongState(f"Correction {earlier} says this already.")
            amended = replace(item, prompt=request.prompt, request=request)
            if editor is not None:
                amended = replace(amended, editor=editor)
            return self._write([amended.noted(PENDING, who, why or "amended")])[0]

    def hold(self, number: int, who: str, seconds: float = HOLD_S) -> QueueItem:
        """Keep an item for one person, for a while. Raises Held."""
        with self._turn:
            item = self._unheld(number, who)
            return self._write([replace(item, hold=Hold(who, time.time() + seconds))])[0]

    def release(self, number: int, who: str) -> QueueItem:
        """Give an item back. Raises Held."""
        with self._turn:
            return self._write([replace(self._unheld(number, who), hold=None)])[0]

    def _unheld(self, number: int, who: str) -> QueueItem:
        item = self.get(number)
        hold = item.hold
        if hold is not None and hold.who != who and hold.until > time.time():
            raise Held(f"{hold.who} has correction {number} open: ask them, or wait.")
        return item

    # -- following

    def put(self, items: Sequence[QueueItem]) -> list[QueueItem]:
        """Set items, durably and all at once: for those who apply and follow them."""
        with self._turn:
            return self._write(items)

    def _write(self, items: Sequence[QueueItem]) -> list[QueueItem]:
        if items:
            self._store.record_queue({_name(item.number): item.to_json() for item in items})
        for item in items:
            self._take(item)
            self.on_change(item)
        return list(items)

    def _take(self, item: QueueItem) -> None:
        before = self._items.get(item.number)
        former = None if before is None or before.request is None else before.request.id
        if former is not None and self._numbers.get(former) == item.number:
            del self._numbers[former]
        self._items[item.number] = item
        if item.request is not None and item.state in LIVE:
            self._numbers.setdefault(item.request.id, item.number)


def _name(number: int) -> str:
    return f"{ITEM}{number:0{_DIGITS}}"


def _key(key: str) -> str:
    return KEY + hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
