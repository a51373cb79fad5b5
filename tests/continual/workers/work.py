"""Functions for workers: a process that is not this one imports them by name."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from continual.site import Site
from continual.statistics import StatisticsError
from continual.tasks import Encoding


def pid_of(_: int) -> int:
    return os.getpid()


def doubled(number: int) -> int:
    return 2 * number


def refused(number: int) -> int:
    if number >= 2:
        raise StatisticsError(number, "are missing")
    return number


def killed_once(folder: Path, number: int) -> int:
    """The square of a number; the first worker that takes number 3 is killed."""
    mark = folder / "killed"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def always_killed(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def judged_and_killed(folder: Path, site: Site, encodings: list[Encoding]) -> list[bool]:
    """The outcomes of one pass; one worker is killed on its way."""
    mark = folder / "killed"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return site.judge_in_full(encodings)


def is_bare(site: Site, _: int) -> tuple[bool, int]:
    return site.edited.is_bare, os.getpid()
