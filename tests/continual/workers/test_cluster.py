"""Workers on a cluster of Ray's leave the bits of one process, whatever leaves the cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.protocol.runs import ProtocolRuns
from continual.execution.local import LOCAL
from continual.session import open_session
from continual.workers import Crew, WorkerLost
from tests import tiny_language as language
from tests.benchmarks.protocol.test_runs import PLAN, setting, untimed
from tests.continual.associative_bench import mediating_decoder
from tests.continual.execution.test_execution import made, short_passes
from tests.continual.workers import work

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(1800)
__all__ = ["setting", "short_passes"]  # fixtures


class Watched:
    """The seats of a cluster: kills the third worker once, while it works its second item."""

    def __init__(self, seats: Any) -> None:
        self.seats, self.count, self.remedy = seats, seats.count, seats.remedy
        self.items = [0] * seats.count
        self.renewed: list[str] = []

    def post(self, seat: int, message: bytes) -> bool:
        self.items[seat] += 1
        if seat == 2 and self.items[seat] == 2:
            os.kill(ray.get(self.seats.actors[seat].pid.remote()), signal.SIGKILL)
        return bool(self.seats.post(seat, message))

    def wait(self, seats: Collection[int]) -> dict[int, bytes | None]:
        return dict(self.seats.wait(seats))

    def renew(self, seat: int) -> str:
        self.renewed.append(self.seats.renew(seat))
        return self.renewed[-1]

    def close(self) -> None:
        self.seats.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of this machine, with room for three workers."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    yield cluster
    if cluster.head_node is not None:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def seats(cluster: Any) -> Iterator[Watched]:
    from continual.workers.cluster import RayActors

    seats = Watched(RayActors(cluster.address, 3))
    yield seats
    seats.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.save_decoder(tmp_path_factory.mktemp("model"), mediating_decoder())


def test_a_cluster_that_is_not_there_is_named() -> None:
    from continual.workers.cluster import RayActors

    with pytest.raises(WorkerLost, match=r"no cluster at 127\.0\.0\.1:1 .*--workers N"):
        RayActors("127.0.0.1:1")


def test_a_history_is_the_same_on_two_workers_and_a_third_that_is_killed(
    seats: Watched, tmp_path: Path, model: Path
) -> None:
    """Statistics, a batch of MEMIT, neurons, re-checks; and a full re-check behind them."""
    here = made(tmp_path / "here", model, LOCAL)
    assert made(tmp_path / "there", model, Crew(seats)) == here
    assert min(seats.items) > 2
    assert len(seats.renewed) == 1
    with open_session(tmp_path / "there" / "store", executor=Crew(seats)) as session:
        ledger, before = session.run_state.ledger, sum(seats.items)
        assert ledger.remeasure() == {}
        assert sum(seats.items) > before
        assert ledger.outcomes() == here["outcomes"]


@pytest.mark.watched  # a worker's new stores are as the package makes them
@pytest.mark.calibrated
def test_folds_of_the_protocol_have_the_same_rows(
    setting: Any, tmp_path: Path, seats: Watched
) -> None:
    here = ProtocolRuns(setting, PLAN, tmp_path / "here").run()
    there = ProtocolRuns(setting, PLAN, tmp_path / "there").run(Crew(seats))
    assert [untimed(run) for run in there] == [untimed(run) for run in here]


def test_a_cluster_that_goes_is_named(cluster: Any, seats: Watched) -> None:
    results = Crew(seats).map(work.doubled, range(100))
    assert next(results) == 0
    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    cluster.head_node = None  # there is nothing left to be shut down
    with pytest.raises(WorkerLost, match=r"The cluster at .* is gone.*Nothing .* committed"):
        list(results)
