"""Traces and folds of the protocol are the same when workers make them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.protocol.runs import ProtocolRuns
from continual.analysis.tracing import Tracer, TracingConfig
from continual.analysis.tracing.sets import TraceCache, traces_of
from continual.new_store import NewStore, init
from continual.requests import Request
from continual.workers import Crew
from tests import tiny_language as language
from tests.benchmarks.protocol.test_runs import PLAN, setting, untimed
from tests.continual.associative_bench import known, mediating_decoder
from tests.continual.workers.test_crew import Counted

__all__ = ["setting"]  # a fixture


@pytest.fixture(scope="module")
def seats() -> Counted:
    return Counted(2)


@pytest.fixture(scope="module")
def crew(seats: Counted) -> Iterator[Crew]:
    with Crew(seats) as crew:
        yield crew


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.save_decoder(tmp_path_factory.mktemp("model"), mediating_decoder())


def test_traces_are_the_same_and_kept(
    tmp_path: Path, model: Path, crew: Crew, seats: Counted
) -> None:
    facts = [
        Request(prompt=known(c), target_new=language.capital(c), subject=language.COUNTRIES[c])
        for c in range(4)
    ]
    with init(tmp_path / "store", NewStore(str(model), watch={"texts": 0})) as session:
        tracer = Tracer(session.edited, session.task, TracingConfig(draws=4))
        cache = TraceCache(session.store, tracer, 0.5)
        before = seats.posts
        there = list(traces_of(cache, facts, executor=crew))
        assert seats.posts == before + len(facts)
        tracer.trace = None  # type: ignore[method-assign]  # what is kept needs no other run
        assert list(traces_of(cache, facts)) == there
        again = TraceCache(session.store, Tracer(session.edited, session.task, tracer.config), 0.25)
        first = list(traces_of(again, facts, executor=crew))
        session.store.drop_cached(again._name(tracer.fact(*_asked(facts[0])), True))
        assert next(traces_of(again, facts)) == first[0]


def _asked(request: Request) -> tuple[Any, str, str]:
    return request.prompt, request.subject or "", request.target_new


@pytest.mark.watched  # a worker's new stores are as the package makes them
@pytest.mark.calibrated
def test_folds_of_the_protocol_have_the_same_rows(
    setting: Any, tmp_path: Path, crew: Crew, seats: Counted
) -> None:
    here = ProtocolRuns(setting, PLAN, tmp_path / "here").run()
    before = seats.posts
    there = ProtocolRuns(setting, PLAN, tmp_path / "there").run(crew)
    assert seats.posts == before + PLAN.folds
    assert [untimed(run) for run in there] == [untimed(run) for run in here]
    assert ProtocolRuns(setting, PLAN, tmp_path / "there").run() == there
