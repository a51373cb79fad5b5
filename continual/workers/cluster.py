"""Workers on a cluster of Ray's: each is an actor, on whatever machine has a processor free.

An actor is the same worker as a process of this machine, and gets the same messages. The base's
directory and the store have to be at the same paths on every machine; `worker` compares the
fingerprints. An actor that is lost, with its machine or alone, is another actor afterwards. If the
cluster itself is gone the map ends at once with WorkerLost. Ray is the extra `ray`; nothing here
is imported without it.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Collection
from typing import Any

from continual.errors import CeditError
from continual.workers.crew import WorkerLost

LOCAL_CLUSTER = "local"
_CLIENT = "ray://"
_CONNECT_S = 5.0  # that the cluster's head has to take a connection


class RayActors:
    """So many workers on a cluster; see `crew.Seats`. Each is started when it is needed."""

    remedy = (
        "The usual cause is memory, as each worker holds a model: take fewer workers (--workers), "
        "or machines with more of it."
    )

    def __init__(self, address: str, count: int | None = None) -> None:
        """Connect to a cluster: `auto` for the one that runs on this machine, `ray://HOST:PORT`, or
        `local` for one of this process alone. `count` workers, or one for each GPU, or for each
        processor if there is none. Raises CeditError without Ray, and WorkerLost without the
        cluster."""
        self._ray = _imported()
        self._address = address
        self._is_shared = self._ray.is_initialized()  # a caller's own connection stays
        self._connect(count)
        self._head = self._found_head()
        resources = self._ray.cluster_resources()
        self.count = count or max(1, int(resources.get("GPU") or resources.get("CPU") or 1))
        self._gpus = min(1.0, resources.get("GPU", 0.0) / self.count)  # of each worker
        self.actors: dict[int, Any] = {}
        self._replies: dict[int, Any] = {}  # references to replies under way
        self._causes: dict[int, str] = {}

    def _connect(self, count: int | None) -> None:
        ray = self._ray
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address == LOCAL_CLUSTER:
            options |= {"num_cpus": count or os.cpu_count(), "include_dashboard": False}
        try:
            if self._address not in (LOCAL_CLUSTER, "auto"):  # Ray itself would try for minutes
                _require_open(_host_and_port(self._address))
            ray.init(address=self._address, ignore_reinit_error=True, **options)
        except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            cause = str(error) or type(error).__name__
            raise WorkerLost(
                f"There is no cluster at {self._address} ({cause}): start one with `ray start "
                "--head`, name another with --cluster ray://HOST:PORT, or work on this machine "
                "with --workers N."
            ) from error

    def post(self, seat: int, message: bytes) -> bool:
        """Send a message to a worker, started now if there is none; return False if it is gone."""
        self._require_cluster()
        if seat not in self.actors:
            self.actors[seat] = _actor_class(self._ray, self._gpus).remote(sys.path)
        self._replies[seat] = self.actors[seat].work.remote(message)
        return True

    def wait(self, seats: Collection[int]) -> dict[int, bytes | None]:
        """Wait for replies of these workers; return those that came, and None for a worker that is
        gone. Raises WorkerLost if the cluster is gone."""
        by_reference = {self._replies[seat]: seat for seat in seats}
        while True:
            ready, _ = self._ray.wait(list(by_reference), timeout=_CONNECT_S)
            if ready:
                return {by_reference[ref]: self._reply(by_reference[ref], ref) for ref in ready}
            self._require_cluster()

    def _reply(self, seat: int, reference: Any) -> bytes | None:
        try:
            reply: bytes = self._ray.get(reference)
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            self._require_cluster()
            self._causes[seat] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return None
        return reply

    def renew(self, seat: int) -> str:
        """Clear the place of a worker that is gone, for another one; return the cause of its
        end."""
        actor = self.actors.pop(seat, None)
        if actor is not None:
            self._ray.kill(actor)
        return self._causes.pop(seat, "it does not answer")

    def close(self) -> None:
        """End all workers. A cluster of this process alone ends, too."""
        actors = list(self.actors.values())
        self.actors.clear()
        if not self._is_there():  # taking leave of a cluster that is gone would end this process
            return
        for actor in actors:
            self._ray.kill(actor)
        if not self._is_shared:
            self._ray.shutdown()

    # -- the cluster itself

    def _require_cluster(self) -> None:
        if not self._is_there():
            raise WorkerLost(
                f"The cluster at {self._address} is gone: start it again, or work on this machine "
                "with --workers N. Nothing that was committed is lost: the same command goes on "
                "from there."
            )

    def _is_there(self) -> bool:
        """Tell whether the cluster's head takes connections."""
        if not self._ray.is_initialized():
            return False
        try:
            _require_open(self._head)
        except OSError:
            return False
        return True

    def _found_head(self) -> tuple[str, int]:
        """Return the host and the port of the cluster's head."""
        if self._address.startswith(_CLIENT):
            return _host_and_port(self._address)
        return _host_and_port(self._ray.get_runtime_context().gcs_address)


def _host_and_port(address: str) -> tuple[str, int]:
    """Read `HOST:PORT` or `ray://HOST:PORT`. Raises ValueError."""
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    return host, int(port)


def _require_open(place: tuple[str, int]) -> None:
    """Raise OSError for a port that takes no connection."""
    socket.create_connection(place, _CONNECT_S).close()


def _imported() -> Any:
    """Return Ray. Raises CeditError without it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise CeditError(
            "Workers on a cluster need Ray, which is not installed: pip install 'cedit[ray]'. "
            "Workers on this machine need nothing: --workers N."
        ) from error
    return ray


def _actor_class(ray: Any, gpus: float) -> Any:
    """Return the class of actors. It is sent by value: an actor imports this package only once it
    has this process's search path."""

    class Actor:
        def __init__(self, path: list[str]) -> None:
            import sys

            sys.path[:0] = [folder for folder in path if folder not in sys.path]
            from continual.workers.worker import Worker

            self._worker = Worker()

        def pid(self) -> int:
            import os

            return os.getpid()

        def work(self, message: bytes) -> bytes:
            return self._worker.work(message)

    return ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)(Actor)
