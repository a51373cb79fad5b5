"""Webhooks: every change of a correction is posted to addresses that the administrator named.

An event is sent until it is taken (any 2xx), each correction's events in their order; the number
that were taken stands in the store, so that a server that starts again goes on there. So an event
may come twice, and says so by its id. Events carry a signature: HMAC-SHA256 of the body.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from continual.errors import CeditError
from continual.review.items import QueueItem, now
from continual.review.queue import CorrectionQueue
from continual.review.telling import told
from store import Store, StoreError

SIGNATURE = "X-Cedit-Signature"
TIMEOUT_S = 10.0
RETRY_S, RETRY_MAX_S = 1.0, 300.0
HOOKS_MAX = 16
URL_CHARACTERS_MAX = 2048
_LOG = logging.getLogger("cedit.webhooks")


class BadAddress(CeditError):
    """An address that nothing can be posted to."""

    exit_code = 2


@dataclass
class Webhook:
    """An address, with the corrections whose events it has not taken yet."""

    url: str
    since: str  # events from before are not sent
    pending: set[int] = field(default_factory=set)
    due_at: float = 0.0  # monotonic seconds
    delay_s: float = RETRY_S
    is_kept: bool = False  # made by an administrator, and used at the next start, too
    fault: str = ""  # why the latest event was not taken

    @property
    def name(self) -> str:
        """Its name in the store."""
        return f"hook/{hashlib.sha256(self.url.encode()).hexdigest()[:16]}"


class Webhooks:
    """Posts the changes of a queue, on a thread of its own."""

    def __init__(
        self,
        store: Store,
        queue: CorrectionQueue,
        urls: Sequence[str],
        secret: str,
        retry_s: float = RETRY_S,
    ) -> None:
        """Raises BadAddress."""
        self._store, self._queue, self._secret = store, queue, secret.encode()
        self._retry_s = retry_s
        self._turn = threading.Condition()
        self._is_closed = False
        kept = [record["url"] for _, record in store.queue_entries("hook/") if record.get("kept")]
        self._hooks = [self._hook(_checked(url)) for url in dict.fromkeys((*urls, *kept))]
        for hook in self._hooks:
            hook.is_kept = hook.url in kept
        self._thread = threading.Thread(target=self._run, name="cedit-webhooks", daemon=True)

    def start(self) -> None:
        """Begin to send, whatever was not taken before first."""
        for hook in self._hooks:
            hook.pending = {item.number for item in self._queue.items()}
        self._queue.on_change = self._heard
        self._thread.start()

    def told(self) -> list[dict[str, Any]]:
        """Return each webhook: address, corrections with events to send, the latest fault."""
        with self._turn:
            return [
                {
                    "url": hook.url,
                    "is_kept": hook.is_kept,
                    "pending": len(hook.pending),
                    "fault": hook.fault,
                }
                for hook in self._hooks
            ]

    def add(self, url: str) -> None:
        """Post the changes from now on to another address, also after a restart. Raises BadAddress
        for one that cannot be, or is there."""
        with self._turn:
            if any(hook.url == url for hook in self._hooks):
                raise BadAddress(f"{url!r} is a webhook already.")
            if len(self._hooks) >= HOOKS_MAX:
                raise BadAddress(f"There are {HOOKS_MAX} webhooks already: remove one first.")
            hook = Webhook(_checked(url), now(), delay_s=self._retry_s, is_kept=True)
            record = {"url": url, "since": hook.since, "kept": True}
            self._store.record_queue({hook.name: record})
            self._hooks.append(hook)

    def remove(self, url: str) -> None:
        """Post nothing more to an address that an administrator had added. Raises BadAddress for
        any other one."""
        with self._turn:
            hook = next((one for one in self._hooks if one.url == url and one.is_kept), None)
            if hook is None:
                raise BadAddress(f"{url!r} is no webhook that was made here.")
            record = {"url": url, "since": hook.since, "kept": False}
            self._store.record_queue({hook.name: record})
            self._hooks.remove(hook)

    def close(self) -> None:
        """Stop; the rest is sent at the next start."""
        with self._turn:
            self._is_closed = True
            self._turn.notify()
        if self._thread.is_alive():
            self._thread.join(TIMEOUT_S)

    def _hook(self, url: str) -> Webhook:
        hook = Webhook(url, now(), delay_s=self._retry_s)
        record = self._store.queue_entry(hook.name)
        if record is None:
            self._store.record_queue({hook.name: {"url": url, "since": hook.since}})
        else:
            hook.since = record["since"]
        return hook

    def _heard(self, item: QueueItem) -> None:
        with self._turn:
            for hook in self._hooks:
                hook.pending.add(item.number)
            self._turn.notify()

    # -- the thread

    def _run(self) -> None:
        while (hook := self._next()) is not None:
            try:
                self._send_all(hook)
            except StoreError as error:  # the store is closed, or its disk is full
                _LOG.error("webhooks stop: %s", error)
                return

    def _next(self) -> Webhook | None:
        """Wait for a hook with something to send; None when it is closed."""
        with self._turn:
            while not self._is_closed:
                waiting = [hook for hook in self._hooks if hook.pending]
                first = min(waiting, key=lambda hook: hook.due_at, default=None)
                if first is not None and first.due_at <= time.monotonic():
                    return first
                self._turn.wait(None if first is None else first.due_at - time.monotonic())
        return None

    def _send_all(self, hook: Webhook) -> None:
        """Send a hook's events, up to the first that is not taken."""
        with self._turn:
            numbers = sorted(hook.pending)
        for number in numbers:
            with self._turn:
                hook.pending.discard(number)
            if self._is_closed or not self._send(hook, self._queue.get(number)):
                with self._turn:
                    hook.pending.add(number)
                return

    def _send(self, hook: Webhook, item: QueueItem) -> bool:
        """Send the events of an item that were not taken yet; tell whether all are taken now."""
        name = f"{hook.name}/{item.number}"
        taken = int((self._store.queue_entry(name) or {"taken": 0})["taken"])
        for place in range(taken, len(item.events)):
            event = item.events[place]
            if event.at >= hook.since and not self._posted(hook, item, place):
                hook.fault = hook.fault or "it is not taken"
                hook.due_at = time.monotonic() + hook.delay_s
                hook.delay_s = min(2 * hook.delay_s, RETRY_MAX_S)
                return False
            hook.delay_s, hook.due_at, hook.fault = self._retry_s, 0.0, ""
            self._store.record_queue({name: {"taken": place + 1}})
        return True

    def _posted(self, hook: Webhook, item: QueueItem, place: int) -> bool:
        event = item.events[place]
        record: Mapping[str, Any] = {
            "id": f"{item.number}-{place}",
            "type": f"correction.{event.state}",
            "at": event.at,
            "who": event.who,
            "why": event.why,
            "correction": told(item),
        }
        body = json.dumps(record).encode("utf-8")
        signature = hmac.new(self._secret, body, "sha256").hexdigest()
        headers = {"Content-Type": "application/json", SIGNATURE: f"sha256={signature}"}
        call = urllib.request.Request(hook.url, body, headers, method="POST")
        try:
            with _OPENER.open(call, timeout=TIMEOUT_S) as response:
                return bool(200 <= response.status < 300)
        except (OSError, ValueError) as error:
            hook.fault = str(error)
            _LOG.warning("webhook %s is not taken: %s", urlsplit(hook.url).netloc, error)
            with suppress(AttributeError):
                error.close()  # type: ignore[union-attr]
            return False


class _Staying(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: an address is where the administrator said."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Return nothing: a redirect is an error."""


_OPENER = urllib.request.build_opener(_Staying, urllib.request.ProxyHandler({}))


def _checked(url: str) -> str:
    """Return an address that can be posted to. Raises BadAddress."""
    try:
        parts = urlsplit(url[: URL_CHARACTERS_MAX + 1])
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_good = is_web and len(url) <= URL_CHARACTERS_MAX and url.isprintable()
    except ValueError:
        is_good = False
    if not is_good:
        raise BadAddress(f"{url!r} is no address for a webhook: give an http or https URL.")
    return url
