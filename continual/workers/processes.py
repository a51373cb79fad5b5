"""Workers as processes of this machine, each at the other end of a socket.

They are started afresh (no fork: a forked process may inherit locked threads), with this process's
Python, search path and number of threads. A worker ends when its socket closes, however this
process ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from continual.workers.worker import serve; serve(int(sys.argv[1]))"
)
_ENDING_S = 5.0  # that a process has to end by itself


@dataclass(frozen=True)
class _Process:
    process: subprocess.Popen[bytes]
    connection: Connection


class LocalProcesses:
    """So many workers on this machine; see `crew.Seats`. Each is started when it is needed."""

    remedy = (
        "The usual cause is memory, as each worker holds a model: take fewer workers (--workers), "
        "or work in this process alone, without --workers."
    )

    def __init__(self, count: int) -> None:
        self.count = count
        self._processes: dict[int, _Process] = {}

    def post(self, seat: int, message: bytes) -> bool:
        """Send a message to a worker, started now if there is none; return False if it is gone."""
        if seat not in self._processes:
            self._processes[seat] = _started()
        try:
            self._processes[seat].connection.send_bytes(message)
        except OSError:
            return False
        return True

    def wait(self, seats: Collection[int]) -> dict[int, bytes | None]:
        """Wait for replies of these workers; return those that came, and None for a worker that is
        gone."""
        connections = {self._processes[seat].connection: seat for seat in seats}
        replies: dict[int, bytes | None] = {}
        for connection in wait(list(connections)):
            assert isinstance(connection, Connection)
            try:
                replies[connections[connection]] = connection.recv_bytes()
            except (EOFError, OSError):
                replies[connections[connection]] = None
        return replies

    def renew(self, seat: int) -> str:
        """Clear the place of a worker that is gone, for another one; return the cause of its
        end."""
        gone = self._processes.pop(seat)
        gone.connection.close()
        return _cause(_ended(gone.process))

    def pids(self) -> list[int]:
        """Return the process ids of the workers that were started."""
        return [one.process.pid for one in self._processes.values()]

    def close(self) -> None:
        """End all workers."""
        for one in self._processes.values():
            one.connection.close()
            one.process.terminate()
        for one in self._processes.values():
            _ended(one.process)
        self._processes.clear()


def _started() -> _Process:
    here, there = socket.socketpair()
    path = json.dumps([folder or str(Path.cwd()) for folder in sys.path])
    with there:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(there.fileno()), path],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
    return _Process(process, Connection(here.detach()))


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process to end, and make it; return its exit code, negative for a signal."""
    try:
        return process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _cause(code: int) -> str:
    if code == -signal.SIGKILL:
        return "it was killed (signal 9), as a system does that runs out of memory"
    if code < 0:
        return f"it was ended by signal {-code}"
    return f"it ended with exit code {code}"
