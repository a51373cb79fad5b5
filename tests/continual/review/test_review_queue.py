"""The queue of corrections: states and ways, keys, duplicates, holds; whole after any kill."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from continual.requests import Request
from continual.review.items import WrongState
from continual.review.queue import CorrectionQueue, Held, KeyReused, Proposal, UnknownItem
from continual.review.states import DECISIONS, LIVE, STATES, WAYS
from store import Store
from store.errors import IntegrityError

ROOT = Path(__file__).resolve().parents[3]


def request(number: int, target: str = "Lyon") -> Request:
    prompt = f"The capital of country {number} is"
    return Request.from_json({"prompt": prompt, "target_new": target})


def proposal(number: int, target: str = "Lyon", **more: str) -> Proposal:
    return Proposal.of(request(number, target), "ana", **more)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.init(tmp_path / "store", {"model": {"path": "m"}}, {}, "f0") as opened:
        yield opened


@pytest.fixture
def queue(store: Store) -> CorrectionQueue:
    return CorrectionQueue(store)


def reread(store: Store) -> CorrectionQueue:
    """The queue as another process would find it."""
    return CorrectionQueue(store)


def test_every_state_can_be_reached_and_left() -> None:
    assert WAYS.keys() == set(STATES)
    reached = {"flagged", "pending", "duplicate"}.union(*WAYS.values())
    assert reached == set(STATES)
    assert all(WAYS[state] for state in STATES)
    assert set(STATES) > LIVE


def test_a_correction_is_proposed_decided_and_remembered(
    queue: CorrectionQueue, store: Store
) -> None:
    (added,) = queue.add([proposal(1, why="a user said so")])
    assert (added.item.number, added.item.state, added.is_repeat) == (1, "pending", False)
    queue.decide([1], "approved", "bo", "checked", editor="serac")
    for found in (queue, reread(store)):
        item = found.get(1)
        assert (item.state, item.editor) == ("approved", "serac")
        told = [(event.state, event.who, event.why) for event in item.events]
        assert told == [("pending", "ana", "a user said so"), ("approved", "bo", "checked")]
        assert found.next_approved() == item
        assert item.request == request(1)
        assert found.counts()["approved"] == 1
    queue.decide([1], "rejected", "bo")
    assert reread(store).next_approved() is None


def test_a_batch_is_decided_whole_or_not_at_all(queue: CorrectionQueue) -> None:
    queue.add([proposal(n) for n in (1, 2, 3)])
    queue.decide([2], "rejected", "bo")
    before = [item.state for item in queue.items()]
    with pytest.raises(WrongState, match="Correction 2 is rejected"):
        queue.decide([1, 2, 3], "approved", "bo")
    with pytest.raises(UnknownItem):
        queue.decide([1, 9], "approved", "bo")
    assert [item.state for item in queue.items()] == before
    for state in set(STATES) - DECISIONS:
        with pytest.raises(WrongState):
            queue.decide([1], state, "bo")


def test_the_same_key_is_the_same_correction(queue: CorrectionQueue, store: Store) -> None:
    queue.add([proposal(1, key="k")])
    for found in (queue, reread(store)):
        (again,) = found.add([proposal(1, key="k")])
        assert (again.item.number, again.is_repeat) == (1, True)
        with pytest.raises(KeyReused):
            found.add([proposal(1, "Oslo", key="k")])
    assert len(reread(store)) == 1
    one, two = queue.add([proposal(5, key="x"), proposal(5, key="x")])  # within one batch
    assert (one.item, two.is_repeat) == (two.item, True)


def test_the_same_content_is_a_duplicate_while_it_is_on_its_way(queue: CorrectionQueue) -> None:
    queue.add([proposal(1)])
    (again,) = queue.add([proposal(1)])
    assert (again.item.state, again.item.duplicate_of) == ("duplicate", 1)
    (other,) = queue.add([proposal(1, "Oslo")])
    assert other.item.state == "pending"
    queue.decide([1], "rejected", "bo")
    (new,) = queue.add([proposal(1)])
    assert new.item.state == "pending"
    one, two = queue.add([proposal(7), proposal(7)])
    assert (one.item.state, two.item.duplicate_of) == ("pending", one.item.number)


def test_an_answer_without_a_right_one_waits_for_it(queue: CorrectionQueue) -> None:
    (added,) = queue.add([Proposal(request(1).prompt, None, "ana", source="feedback")])
    assert added.item.state == "flagged"
    with pytest.raises(WrongState, match="right answer first"):
        queue.decide([1], "approved", "bo")
    amended = queue.amend(1, request(1), "bo")
    assert (amended.state, amended.request) == ("pending", request(1))
    queue.decide([1], "approved", "bo")
    with pytest.raises(WrongState, match="open ones"):
        queue.amend(1, request(1, "Oslo"), "bo")


def test_what_a_person_has_open_is_not_decided_by_another(queue: CorrectionQueue) -> None:
    queue.add([proposal(1)])
    queue.hold(1, "ana")
    for change in (
        lambda: queue.decide([1], "approved", "bo"),
        lambda: queue.amend(1, request(1, "Oslo"), "bo"),
        lambda: queue.hold(1, "bo"),
        lambda: queue.release(1, "bo"),
    ):
        with pytest.raises(Held, match="ana has correction 1 open"):
            change()
    queue.hold(1, "ana", seconds=-1)  # it has run out
    assert queue.decide([1], "approved", "bo")[0].hold is None


def test_a_record_that_is_none_is_named(store: Store) -> None:
    store.record_queue({"item/000000000001": {"state": "pending"}})
    with pytest.raises(IntegrityError, match="journal/queue/item/000000000001"):
        CorrectionQueue(store)


# -- killed at any moment

PROPOSER = """
import sys
from pathlib import Path
from continual.review.queue import CorrectionQueue, Proposal
from continual.requests import Request
from store import Store

with Store.open(Path(sys.argv[1]), writable=True) as store:
    queue, number = CorrectionQueue(store), int(sys.argv[2])
    print("ready", flush=True)
    while True:
        text = {"prompt": f"The capital of country {number} is", "target_new": "Lyon"}
        proposal = Proposal.of(Request.from_json(text), "ana", key=f"key {number}")
        (added,) = queue.add([proposal])
        print(f"added {number} {added.item.number}", flush=True)
        if added.item.state == "pending":
            queue.decide([added.item.number], "approved", "bo")
        print(f"approved {number} {added.item.number}", flush=True)
        number += 1
"""


def test_kills_lose_no_acknowledged_change_and_double_none(store: Store) -> None:
    """A client that was not answered asks again with its key, as clients do."""
    path = store.path
    store.close()
    draw, country = random.Random(11), 0
    added: dict[int, int] = {}
    approved: set[int] = set()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(8):
        command = [sys.executable, "-c", PROPOSER, str(path), str(country)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        lines = [child.stdout.readline() for _ in range(draw.randint(1, 9))]
        time.sleep(draw.uniform(0.0, 0.01))
        child.send_signal(signal.SIGKILL)
        for line in "".join([*lines, child.stdout.read()]).split("\n")[:-1]:
            word, number, item = line.split()
            assert added.setdefault(int(number), int(item)) == int(item)
            if word == "approved":
                approved.add(int(number))
        child.wait()
        country = max(approved, default=-1) + 1
        with Store.open(path) as reader:
            items = {i.number: i for i in CorrectionQueue(reader).items()}
        assert list(items) == list(range(1, len(items) + 1))
        assert len({item.request.id for item in items.values() if item.request}) == len(items)
        for number, item in added.items():
            assert items[item].request == request(number)
            assert number not in approved or items[item].state == "approved"
        assert len(items) - len(added) in (0, 1)
    assert len(added) > 8
