"""Work on a store that takes long, such as reading all of it back: begun by a page, and looked at
later. Knows who began what and how it ended; leaves the work itself to its caller."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from continual.errors import CeditError

JOBS_MAX = 20  # that are remembered
RUNNING, DONE, FAILED = "running", "done", "failed"


class JobRunning(CeditError):
    """A job of a kind of which one is running already."""


@dataclass(frozen=True)
class Job:
    """A piece of work, and its result so far."""

    number: int
    name: str
    who: str
    begun_at: str  # ISO 8601
    state: str = RUNNING
    result: str = ""  # in words, for people
    lines: tuple[str, ...] = ()  # one for each finding


@dataclass(frozen=True)
class JobResult:
    """The end of a job that did not fail."""

    result: str
    lines: Sequence[str] = ()


class Jobs:
    """The latest jobs of a server, each on a thread of its own; any thread may use them."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._jobs: deque[Job] = deque(maxlen=JOBS_MAX)
        self._count = 0

    @property
    def latest(self) -> list[Job]:
        """The jobs, the last one first."""
        with self._turn:
            return list(self._jobs)[::-1]

    @property
    def is_running(self) -> bool:
        """True while any job runs."""
        return any(job.state == RUNNING for job in self.latest)

    def begin(self, name: str, who: str, work: Callable[[], JobResult]) -> Job:
        """Begin a job. Raises JobRunning if one of its name runs."""
        with self._turn:
            if any(job.name == name and job.state == RUNNING for job in self._jobs):
                raise JobRunning(f"{name} runs already: wait for its end.")
            self._count += 1
            job = Job(self._count, name, who, datetime.now(UTC).isoformat(timespec="seconds"))
            self._jobs.append(job)
        threading.Thread(target=self._run, args=(job, work), name="cedit-job", daemon=True).start()
        return job

    def _run(self, job: Job, work: Callable[[], JobResult]) -> None:
        try:
            end = work()
            ended = replace(job, state=DONE, result=end.result, lines=tuple(end.lines))
        except Exception as error:
            kind = "" if isinstance(error, CeditError) else f"{type(error).__name__}: "
            ended = replace(job, state=FAILED, result=f"{kind}{error}")
        with self._turn:
            place = next((i for i, one in enumerate(self._jobs) if one.number == job.number), None)
            if place is not None:
                self._jobs[place] = ended
