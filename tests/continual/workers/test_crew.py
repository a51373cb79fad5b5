"""Maps have the same bits with workers, whatever becomes of these."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from continual import hooks
from continual.base import load_base
from continual.execution.local import LOCAL
from continual.model import EditedModel
from continual.new_store import NewStore, init
from continual.requests import Request
from continual.session import Session, open_session
from continual.site import Site
from continual.statistics import StatisticsError
from continual.step.pipeline import Step
from continual.tasks import make_task
from continual.workers import Crew, WorkerLost
from continual.workers import crew as crews
from continual.workers.processes import LocalProcesses
from tests import tiny_language as language
from tests.continual.associative_bench import known, mediating_decoder
from tests.continual.execution.test_execution import (
    LONG,
    MAPS,
    SMALL,
    encodings_of,
    is_same,
    made,
    records,
    short_passes,
)
from tests.continual.workers import work
from tests.tiny_language import capital

__all__ = ["short_passes"]  # a fixture that every test here uses


class Counted(LocalProcesses):
    """Counts the messages to workers."""

    posts = 0

    def post(self, seat: int, message: bytes) -> bool:
        self.posts += 1
        return super().post(seat, message)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.save_decoder(tmp_path_factory.mktemp("model"), mediating_decoder())


@pytest.fixture(scope="module")
def seats() -> Counted:
    return Counted(2)


@pytest.fixture(scope="module")
def crew(seats: Counted) -> Iterator[Crew]:
    with Crew(seats) as crew:
        yield crew


@pytest.fixture(scope="module")
def edited(model: Path) -> Iterator[EditedModel]:
    with EditedModel(load_base(model)) as edited:
        yield edited


def site_with(edited: EditedModel, executor: Any) -> Site:
    return Site(edited, make_task(edited.base, {}), executor)


# --- plain functions ------------------------------------------------------------------------------


def test_items_go_to_other_processes_and_results_keep_their_order(crew: Crew) -> None:
    pids = set(crew.map(work.pid_of, range(12)))
    assert os.getpid() not in pids
    assert len(pids) == 2
    assert list(crew.map(work.doubled, range(30))) == [2 * n for n in range(30)]


def test_one_item_and_functions_of_this_process_stay_here(crew: Crew, seats: Counted) -> None:
    before = seats.posts
    here = [os.getpid()]
    assert list(crew.map(work.pid_of, [1])) == here
    assert list(crew.map(lambda _: os.getpid(), [1, 2])) == 2 * here
    assert seats.posts == before


def test_an_error_comes_at_its_item_as_it_was_raised(crew: Crew) -> None:
    results = crew.map(work.refused, range(6))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(StatisticsError, match="block 2 are missing: run") as caught:
        next(results)
    assert caught.value.block == 2


def test_a_map_that_is_left_early_disturbs_no_later_one(crew: Crew) -> None:
    results = crew.map(work.doubled, range(20))
    assert next(results) == 0
    del results
    assert list(crew.map(work.doubled, range(5))) == [0, 2, 4, 6, 8]


def test_maps_may_be_taken_side_by_side(crew: Crew) -> None:
    one, other = crew.map(work.doubled, range(8)), crew.map(work.doubled, range(8, 16))
    assert list(zip(one, other, strict=True)) == [(2 * n, 2 * (n + 8)) for n in range(8)]


# --- deaths ---------------------------------------------------------------------------------------


def test_a_worker_killed_while_it_waits_is_replaced(crew: Crew, seats: Counted) -> None:
    list(crew.map(work.doubled, range(4)))
    os.kill(seats.pids()[0], 9)
    time.sleep(0.2)
    assert list(crew.map(work.doubled, range(4))) == [0, 2, 4, 6]


def test_an_item_that_ends_every_worker_is_named_with_a_remedy(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crews, "TRIES", 2)
    message = r"2 workers in a row .* item 2 of 4 of always_killed.*signal 9.*--workers.*committed"
    with pytest.raises(WorkerLost, match=message):
        list(crew.map(work.always_killed, range(4)))
    assert list(crew.map(work.doubled, range(4))) == [0, 2, 4, 6]


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", MAPS, ids=lambda read: read.__name__)
def test_a_map_over_passes_gives_the_same_bits_with_workers(
    edited: EditedModel, crew: Crew, seats: Counted, read: Callable[[Site], Any]
) -> None:
    before = seats.posts
    here, there = (read(site_with(edited, executor)) for executor in (LOCAL, crew))
    assert seats.posts > before + 1
    assert is_same(here, there)


def test_a_pass_is_done_again_by_another_worker_with_the_same_bits(
    edited: EditedModel, crew: Crew, tmp_path: Path
) -> None:
    site = site_with(edited, LOCAL)
    probes = encodings_of(site)
    groups = [probes[i : i + 10] for i in range(0, len(probes), 10)]
    there = list(crew.map(partial(work.judged_and_killed, tmp_path, site), groups))
    assert there == [site.judge_in_full(group) for group in groups]


def test_the_bare_model_is_bare_in_a_worker(edited: EditedModel, crew: Crew) -> None:
    site = site_with(edited, LOCAL)
    for expected in (False, True):
        if expected:
            with edited.bare():
                found = list(crew.map(partial(work.is_bare, site), range(4)))
        else:
            found = list(crew.map(partial(work.is_bare, site), range(4)))
        assert all(bare is expected and pid != os.getpid() for bare, pid in found)


def test_a_model_with_another_hook_stays_here(
    edited: EditedModel, crew: Crew, seats: Counted
) -> None:
    site = site_with(edited, crew)
    before = seats.posts
    block = edited.anatomy.block(edited.model, 0)
    with hooks.altered(block, lambda hidden: 2 * hidden):
        changed = site.rows_in_passes(encodings_of(site))
    assert seats.posts == before
    assert not is_same(changed.hidden, site.rows_in_passes(encodings_of(site)).hidden)
    assert seats.posts > before


# --- a history ------------------------------------------------------------------------------------


def test_a_history_is_the_same_with_workers(
    tmp_path: Path, model: Path, crew: Crew, seats: Counted
) -> None:
    here = made(tmp_path / "here", model, LOCAL)
    before = seats.posts
    there = made(tmp_path / "there", model, crew)
    assert seats.posts > before + 50
    assert here["rates"]["SR"] > 0.5
    assert here == there


def test_a_full_recheck_after_going_back_is_the_same_with_workers(
    tmp_path: Path, model: Path, crew: Crew, seats: Counted
) -> None:
    made(tmp_path / "there", model, LOCAL)
    found = []
    for executor in (LOCAL, crew):
        with open_session(tmp_path / "there" / "store", executor=executor) as session:
            outcomes = []
            for name in ("head", "base", "head"):
                session.forget_run_state()
                session.stand_at(name)
                before = seats.posts
                outcomes.append(session.site.judge_in_full(encodings_of(session.site)))
                assert (seats.posts > before) is (executor is crew)
            found.append(outcomes)
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


class Doomed(LocalProcesses):
    """Kills each worker as soon as it has work, once `is_doomed` is set."""

    is_doomed = False

    def post(self, seat: int, message: bytes) -> bool:
        is_sent = super().post(seat, message)
        if self.is_doomed:
            os.kill(self._processes[seat].process.pid, 9)
        return is_sent


def test_a_stream_goes_on_after_its_workers_were_lost(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crews, "TRIES", 2)
    requests = [Request.from_json(record) for record in records(12, 16)]
    texts = [" ".join(language.words()[3 + i : 33 + i]) for i in range(20)]

    def steps_of(session: Session, wanted: Sequence[Request]) -> Iterator[Step]:
        list(session.statistics.collect(texts, passes=SMALL))
        table = {"memit": {**LONG, "moment_weight": 1.0}}
        return session.apply_requests(wanted, session.settings(chain=("memit",), editors=table))

    tmp_path.joinpath("probes.jsonl").write_text(
        "".join(json.dumps({"prompt": known(c), "answer": capital(c)}) + "\n" for c in range(12))
    )
    new = NewStore(str(model), train_probes=tmp_path / "probes.jsonl")
    with init(tmp_path / "whole", new) as session:
        list(steps_of(session, requests))
        whole = session.edited.fingerprint, session.run_state.ledger.outcomes()
    seats = Doomed(1)
    with Crew(seats) as crew, init(tmp_path / "store", new, executor=crew) as session:
        steps = steps_of(session, requests)
        next(steps)
        seats.is_doomed = True
        with pytest.raises(WorkerLost, match="Nothing that was committed is lost"):
            list(steps)
        committed = session.store.head.id
    with open_session(tmp_path / "store") as session:
        assert session.store.head.id == committed
        left = [r for r in requests if r.id not in session.run_state.retention.requests]
        assert 0 < len(left) < 4
        list(steps_of(session, left))
        assert (session.edited.fingerprint, session.run_state.ledger.outcomes()) == whole


def test_workers_end_with_the_crew(crew: Crew, seats: Counted) -> None:
    pids = seats.pids()
    crew.close()
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
