"""Processes that are there to be hurt: forked when all is imported, traced, killed, heard out.

A child is forked (importing torch takes seconds), waits until it is told to go, and reports its
progress through a socket, a JSON object a line. No store may be open when a child is forked.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from store import StoreError

Say = Callable[..., None]
ChildTask = Callable[[Say], None]
PATIENCE_S = 60.0  # no child takes as long
_CALL = re.compile(r"(\d+) +(\w+)\(")
_ENDLESS = frozenset({"exit", "exit_group", "restart_syscall", "rt_sigreturn"})
_ANY_TRACER = (0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER, PR_SET_PTRACER_ANY


@dataclass
class Heard:
    """The end of a child, and everything that it had said by then."""

    said: list[dict[str, Any]]
    signal: int | None = None  # the signal that ended it
    is_hung: bool = False
    log: str = ""  # strace's

    @property
    def error(self) -> dict[str, Any] | None:
        """The store's own error that it ended with."""
        return next((one for one in self.said if "error" in one), None)

    @property
    def problems(self) -> list[str]:
        """The faults that no child may have: a hang, or an end by an error that has no name."""
        hung = ["it hung"] if self.is_hung else []
        return hung + [one["traceback"] for one in self.said if "traceback" in one]

    @property
    def fired(self) -> int:
        """The number of faults that strace has injected."""
        return self.log.count("(INJECTED)") + self.log.count("+++ killed by SIGKILL +++")


@dataclass
class Child:
    """A forked process, before or after it is told to go."""

    pid: int
    hears: int
    tells: int
    _rest: bytes = b""
    _said: list[dict[str, Any]] = field(default_factory=list)

    def go(self) -> None:
        """Let it begin. A child that was killed meanwhile is no error."""
        with suppress(BrokenPipeError):
            os.write(self.tells, b"!")

    def kill(self) -> None:
        """End it with SIGKILL; a child that has ended already is no error."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def listen(self, seconds: float) -> bool:
        """Take in its messages for some seconds; return False when it has ended."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.hears], [], [], left)[0] and not self.hear():
                return False
        return True

    def hear(self) -> bool:
        """Take in its next messages; return False when it has ended."""
        data = os.read(self.hears, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._said += [json.loads(line) for line in lines]
        return bool(data)

    def finish(self, patience_s: float = PATIENCE_S) -> Heard:
        """Hear it to its end."""
        is_hung = self.listen(patience_s)
        if is_hung:
            self.kill()
            self.listen(PATIENCE_S)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.hears)
        os.close(self.tells)
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        return Heard(self._said, ended, is_hung)


def fork(task: ChildTask) -> Child:
    """Start a child that runs a task once it is told to go; on return it waits for that."""
    ours, theirs = socket.socketpair()  # not a pipe: only the store's own work makes `write` calls
    hears, says = ours.detach(), theirs.detach()
    waits, tells = os.pipe()
    pid = os.fork()
    if pid:
        os.close(says)
        os.close(waits)
        os.read(hears, 1)  # it is ready, or has ended: `listen` notices
        return Child(pid, hears, tells)
    try:
        os.close(hears)
        os.close(tells)
        faulthandler.disable()  # a test may look for a death by signal
        ctypes.CDLL(None).prctl(*_ANY_TRACER, 0, 0, 0)
        os.write(says, b"!")  # from here on, a tracer sees the task's calls alone
        if os.read(waits, 1):
            _perform(task, says)
    finally:
        os._exit(0)


def _perform(task: ChildTask, says: int) -> None:
    line = socket.socket(fileno=says)

    def say(**what: Any) -> None:
        line.sendall(json.dumps(what).encode() + b"\n")

    try:
        task(say)
    except StoreError as error:
        say(error=type(error).__name__, text=str(error), code=error.exit_code)
    except BaseException:
        say(traceback=traceback.format_exc())


def finish_all(children: Sequence[Child], patience_s: float) -> list[Heard]:
    """Hear several children to their ends, all at once: none waits for another to be heard."""
    by_line = {child.hears: child for child in children}
    deadline = time.monotonic() + patience_s
    while by_line and (left := deadline - time.monotonic()) > 0:
        for line in select.select(list(by_line), [], [], left)[0]:
            if not by_line[line].hear():
                del by_line[line]
    return [child.finish(0.0 if child.hears in by_line else PATIENCE_S) for child in children]


def run(task: ChildTask, patience_s: float = PATIENCE_S) -> Heard:
    """Run a task in a child, from beginning to end."""
    child = fork(task)
    child.go()
    return child.finish(patience_s)


def run_traced(task: ChildTask, options: Sequence[str], patience_s: float = PATIENCE_S) -> Heard:
    """Run a task in a child under strace, which is attached before it begins."""
    child = fork(task)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = ["strace", "-f", "-o", str(log), *options, "-p", str(child.pid)]
        strace = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _await_tracer(child.pid, strace)
            child.go()
        except OSError:
            child.kill()
            raise
        finally:
            heard = child.finish(patience_s)
            strace.communicate()
        heard.log = log.read_text(errors="replace")
    return heard


def calls_in(task: ChildTask) -> Counter[str]:
    """Count each system call of a task: the most that one thread makes of it."""
    heard = run_traced(task, ["-e", "signal=none"])
    per_thread = Counter(
        match.groups() for match in map(_CALL.match, heard.log.splitlines()) if match
    )
    most: Counter[str] = Counter()
    for (_, call), count in per_thread.items():
        if call not in _ENDLESS:
            most[call] = max(most[call], count)
    return most


def said_problems(heard: Heard) -> list[str]:
    """Return the problems that a look reported; no answer is a problem too."""
    answers = [one["problems"] for one in heard.said if "problems" in one]
    return answers[0] if answers else [f"no answer: {heard.said} {heard.signal}"]


def _await_tracer(pid: int, strace: subprocess.Popen[bytes]) -> None:
    status = Path(f"/proc/{pid}/status")
    while "TracerPid:\t0" in status.read_text(encoding="utf-8"):
        if strace.poll() is not None:
            said = strace.stderr.read().decode() if strace.stderr else ""
            if "attached" in said:  # and the child was killed at once
                return
            raise OSError(f"strace did not attach: {said.strip()}")
        time.sleep(0.001)


@cache
def why_no_strace() -> str | None:
    """Return the reason why nothing can be traced here, or None."""
    if not shutil.which("strace"):
        return "strace is not installed"
    try:
        heard = run_traced(
            lambda say: say(pid=os.getppid()),
            ["-e", "trace=getppid", "-e", "inject=getppid:error=EIO"],
        )
    except OSError as error:
        return str(error)
    return None if heard.fired else "strace can't inject faults here"


@cache
def why_no_namespaces() -> str | None:
    """Return the reason why no file system can be mounted here, or None."""
    if not shutil.which("unshare"):
        return "unshare is not installed"
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    done = subprocess.run(command, capture_output=True, check=False)
    return None if done.returncode == 0 else f"unshare: {done.stderr.decode().strip()}"
