"""The executor that a command's `--workers` and `--cluster` name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from continual.execution import Executor
from continual.execution.local import LOCAL
from continual.workers.crew import Crew
from continual.workers.processes import LocalProcesses


def executor_of(workers: int | None, cluster: str | None) -> AbstractContextManager[Executor]:
    """Return an executor, as a context manager whose workers end with it: so many workers on this
    machine, workers on a cluster, or this process if neither is named. Raises CeditError for a
    cluster that is not there."""
    if cluster is not None:
        from continual.workers.cluster import RayActors

        return Crew(RayActors(cluster, workers))
    return nullcontext(LOCAL) if workers is None else Crew(LocalProcesses(workers))
