"""The queue as the command line changes it: through a store's running server, or in the store."""

from __future__ import annotations

import getpass
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

if TYPE_CHECKING:
    from continual.requests import Request
    from continual.review.queue import CorrectionQueue

AT_ONCE = 500  # corrections in one request
TIMEOUT_S = 600.0
STATE_OF = {"approve": "approved", "reject": "rejected", "reopen": "pending"}
JsonObject = dict[str, Any]


class QueueDoor(Protocol):
    """A way to change a queue."""

    def decide(
        self, numbers: Sequence[int], decision: str, why: str, editor: str | None
    ) -> list[JsonObject]:
        """Decide about corrections, all or none."""

    def add(
        self, requests: Sequence[tuple[Request, str]], why: str, editor: str | None
    ) -> list[JsonObject]:
        """Hand in requests, each with its idempotency key."""


@contextmanager
def door_of(store: Path) -> Iterator[QueueDoor]:
    """Yield the way to change a store's queue: its server's, if one has the store. Raises
    StoreLocked if another process has it."""
    from continual.review.queue import CorrectionQueue
    from continual.serving.address import address_of
    from store import Store
    from store.errors import StoreLocked

    try:
        with Store.open(store, writable=True) as opened:
            yield _StoreDoor(CorrectionQueue(opened))
    except StoreLocked:
        url = address_of(store)
        if url is None:
            raise
        yield _ServerDoor(url, _token(store))


def _token(store: Path) -> str:
    from continual.serving.tokens import Role, Tokens

    for token in Tokens.of(store).tokens:
        if token.rights >= Role.approve:
            return token.token
    raise click.ClickException("The store's server has no token that may approve.")


def user() -> str:
    """Return the name of the person at this terminal."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "someone"


class _StoreDoor:
    """The queue of a store that is open."""

    def __init__(self, queue: CorrectionQueue) -> None:
        self._queue = queue

    def decide(
        self, numbers: Sequence[int], decision: str, why: str, editor: str | None
    ) -> list[JsonObject]:
        """See `QueueDoor.decide`."""
        from continual.review.telling import told

        items = self._queue.decide(numbers, STATE_OF[decision], user(), why, editor)
        return [told(item) for item in items]

    def add(
        self, requests: Sequence[tuple[Request, str]], why: str, editor: str | None
    ) -> list[JsonObject]:
        """See `QueueDoor.add`."""
        from continual.review.queue import Proposal
        from continual.review.telling import told

        proposals = [
            Proposal.of(request, user(), why=why, source="file", editor=editor, key=key)
            for request, key in requests
        ]
        added = self._queue.add(proposals)
        return [{**told(one.item), "repeated": one.is_repeat} for one in added]


class _ServerDoor:
    """The queue of a store whose server runs."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token

    def decide(
        self, numbers: Sequence[int], decision: str, why: str, editor: str | None
    ) -> list[JsonObject]:
        """See `QueueDoor.decide`."""
        body = {"numbers": list(numbers), "decision": decision, "why": why, "editor": editor}
        return self._sent("/v1/corrections/decide", body, None)

    def add(
        self, requests: Sequence[tuple[Request, str]], why: str, editor: str | None
    ) -> list[JsonObject]:
        """See `QueueDoor.add`."""
        added: list[JsonObject] = []
        for request, key in requests:
            body = {"correction": request.to_json(), "why": why, "editor": editor}
            added += self._sent("/v1/corrections", body, key)
        return added

    def _sent(self, path: str, body: Mapping[str, Any], key: str | None) -> list[JsonObject]:
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json",
            **({} if key is None else {"Idempotency-Key": key}),
        }
        data = json.dumps(body).encode("utf-8")
        call = urllib.request.Request(self._url + path, data, headers, method="POST")
        try:
            with urllib.request.urlopen(call, timeout=TIMEOUT_S) as response:
                records: list[JsonObject] = json.load(response)["data"]
                return records
        except urllib.error.HTTPError as error:
            raise click.ClickException(_message(error)) from None
        except (OSError, ValueError) as error:
            raise click.ClickException(
                f"The server at {self._url} does not answer: {error}."
            ) from None


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server refuses: {error}."
