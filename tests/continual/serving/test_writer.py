"""The writer takes up whatever is approved, whoever left it so."""

from __future__ import annotations

import threading

import pytest

from continual.requests import Request
from continual.review.items import QueueItem
from continual.review.queue import CorrectionQueue, Proposal
from continual.serving import writer
from continual.serving.writer import Writer
from continual.session import Session
from store.errors import StoreError
from tests import tiny_language as language
from tests.continual.serving.conftest import WAIT_S, MakeDesk


def approved(queue: CorrectionQueue, country: int) -> QueueItem:
    request = Request.from_json(language.correction(country))
    (added,) = queue.add([Proposal.of(request, "ana")])
    return queue.decide([added.item.number], "approved", "bo")[0]


def test_what_was_being_applied_when_a_server_died_is_applied_by_the_next_one(
    knowing: Session, desk_of: MakeDesk
) -> None:
    queue, verified = CorrectionQueue(knowing.store), threading.Event()
    queue.put([approved(queue, 1).moved("applying", "cedit", since=knowing.store.length)])
    queue.on_change = lambda item: verified.set() if item.state == "verified" else None
    desk = desk_of(knowing, starts=False)
    Writer(desk, queue).start()  # and nobody wakes it
    desk.start()
    assert verified.wait(WAIT_S)


def test_a_fault_of_the_store_is_not_the_end_of_it(
    knowing: Session, desk_of: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PAUSE_S", 0.05)
    queue, verified, faults = CorrectionQueue(knowing.store), threading.Event(), 0
    approved(queue, 1)
    queue.on_change = lambda item: verified.set() if item.state == "verified" else None
    record = knowing.store.record_queue

    def failing(*args: object) -> None:
        nonlocal faults
        if faults < 3:
            faults += 1
            raise StoreError("the disk is full")
        record(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(knowing.store, "record_queue", failing)
    Writer(desk_of(knowing), queue).start()
    assert verified.wait(WAIT_S)
    assert faults == 3
