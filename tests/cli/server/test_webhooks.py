"""Webhooks: every event is taken once at least, in order, also across failures and restarts."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cli.server.webhooks import SIGNATURE, BadAddress, Webhooks
from continual.requests import Request
from continual.review.queue import CorrectionQueue, Proposal
from store import Store
from store.check import verify

SECRET = "secret"
WAIT_S = 30


class Receiver:
    """A server that takes webhooks, or refuses them for a while."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.refusals: list[int] = []  # statuses to answer first
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                expected = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
                assert self.headers[SIGNATURE] == f"sha256={expected}"
                status = receiver.refusals.pop(0) if receiver.refusals else 204
                if status == 204:
                    receiver.events.append(json.loads(body))
                self.send_response(status)
                self.send_header("Location", f"{receiver.url}/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait(self, count: int) -> list[str]:
        """The types of the events, when so many have come."""
        end = time.monotonic() + WAIT_S
        while len(self.events) < count:
            assert time.monotonic() < end, self.events
            time.sleep(0.01)
        return [event["type"].removeprefix("correction.") for event in self.events]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.init(tmp_path / "store", {"model": {"path": "m"}}, {}, "f0") as opened:
        yield opened


def hooked(store: Store, *urls: str) -> tuple[CorrectionQueue, Webhooks]:
    queue = CorrectionQueue(store)
    hooks = Webhooks(store, queue, urls, SECRET, retry_s=0.01)
    hooks.start()
    return queue, hooks


def propose(queue: CorrectionQueue, number: int) -> int:
    record = {"prompt": f"question {number}", "target_new": "x"}
    (added,) = queue.add([Proposal.of(Request.from_json(record), "ana")])
    return added.item.number


def test_every_change_is_told_in_order_and_signed(store: Store, receiver: Receiver) -> None:
    queue, hooks = hooked(store, receiver.url)
    number = propose(queue, 1)
    queue.decide([number], "approved", "bo", "yes")
    queue.decide([number], "rejected", "bo", "no")
    assert receiver.wait(3) == ["pending", "approved", "rejected"]
    assert [event["id"] for event in receiver.events] == ["1-0", "1-1", "1-2"]
    assert receiver.events[1]["who"] == "bo"
    assert receiver.events[2]["correction"]["prompt"] == "question 1"
    hooks.close()
    assert [p for p in verify(store) if not p.harmless] == []


def test_an_event_is_sent_until_it_is_taken(store: Store, receiver: Receiver) -> None:
    receiver.refusals = [500, 503, 302, 404, 429]
    queue, hooks = hooked(store, receiver.url)
    for number in (1, 2):
        queue.decide([propose(queue, number)], "approved", "bo")
    assert sorted(receiver.wait(4)) == ["approved", "approved", "pending", "pending"]
    of_first = [event["id"] for event in receiver.events if event["id"].startswith("1-")]
    assert of_first == ["1-0", "1-1"]
    hooks.close()


def test_a_server_that_starts_again_goes_on_where_it_was(store: Store, receiver: Receiver) -> None:
    before = CorrectionQueue(store)
    propose(before, 1)  # from before there was a hook
    time.sleep(1.1)  # events are told to the second
    queue, hooks = hooked(store, receiver.url)
    propose(queue, 2)
    assert receiver.wait(1) == ["pending"]
    hooks.close()
    queue.decide([2], "approved", "bo")  # while nobody sends
    queue, hooks = hooked(store, receiver.url)
    assert receiver.wait(2) == ["pending", "approved"]
    propose(queue, 3)
    assert receiver.wait(3)[2:] == ["pending"]
    assert [event["correction"]["number"] for event in receiver.events] == [2, 2, 3]
    hooks.close()


def test_one_address_that_is_down_holds_up_no_other(store: Store, receiver: Receiver) -> None:
    queue, hooks = hooked(store, "http://127.0.0.1:9", receiver.url)
    propose(queue, 1)
    assert receiver.wait(1) == ["pending"]
    hooks.close()


@pytest.mark.parametrize("url", ["", "ftp://x", "file:///etc/passwd", "http://", "http://x:y"])
def test_an_address_that_nothing_can_be_posted_to_is_refused(store: Store, url: str) -> None:
    with pytest.raises(BadAddress):
        Webhooks(store, CorrectionQueue(store), [url], SECRET)
