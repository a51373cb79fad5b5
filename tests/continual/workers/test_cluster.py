"""Workers on a cluster of Ray's leave the bits of one process, whatever leaves the cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from continual.execution.local import LOCAL
from continual.workers import Crew, WorkerLost
from tests import tiny_language as language
from tests.continual.associative_bench import mediating_decoder
from tests.continual.execution.test_execution import made, short_passes
from tests.continual.workers import work

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(600)
__all__ = ["short_passes"]  # a fixture that every test here uses


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of this machine: a head, and a node that can leave."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def seats(cluster: Any) -> Iterator[Any]:
    from continual.workers.cluster import RayActors

    seats = RayActors(cluster.address, 3)
    yield seats
    seats.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.save_decoder(tmp_path_factory.mktemp("model"), mediating_decoder())


def test_a_history_is_the_same_on_two_workers_and_a_third_that_leaves(
    cluster: Any, seats: Any, tmp_path: Path, model: Path
) -> None:
    node = cluster.add_node(num_cpus=1)
    crew = Crew(seats)
    squares = partial(work.killed_once, tmp_path)
    assert list(crew.map(squares, range(9))) == [n * n for n in range(9)]
    assert (tmp_path / "killed").exists()
    pids = set(crew.map(work.pid_of, range(9)))
    assert len(pids) == 3 and os.getpid() not in pids
    cluster.remove_node(node)
    seats.count = 2  # the cluster has no place for a third
    here = made(tmp_path / "here", model, LOCAL)
    assert made(tmp_path / "there", model, crew) == here


def test_a_cluster_that_is_not_there_is_named() -> None:
    from continual.workers.cluster import RayActors

    if ray.is_initialized():
        pytest.skip("this process is connected to another cluster")
    with pytest.raises(WorkerLost, match=r"no cluster at ray://127\.0\.0\.1:1 .*--workers N"):
        RayActors("ray://127.0.0.1:1")


def test_a_cluster_that_goes_is_named(cluster: Any, seats: Any) -> None:
    crew = Crew(seats)
    results = crew.map(work.doubled, range(100))
    assert next(results) == 0
    cluster.shutdown()
    with pytest.raises(WorkerLost, match=r"The cluster at .* is gone.*Nothing .* committed"):
        list(results)
