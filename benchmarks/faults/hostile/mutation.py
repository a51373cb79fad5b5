"""Small changes of good bytes, and cases looked at where a hang or a crash is only one."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.faults import processes
from benchmarks.faults.findings import Finding
from benchmarks.faults.processes import Say

PATIENCE_S = 30
CHUNK = 250


def mutate(data: bytearray, draw: random.Random) -> None:
    """Change bytes, lose some, repeat some, or put in bytes that trip parsers."""
    at = draw.randrange(len(data) + 1)
    piece = draw.choice(
        (b"\0", b"\xff", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\\", b"\\u", b"NaN")
    )
    how = draw.randrange(4)
    if how == 0:
        data[at:at] = piece
    elif how == 1:
        del data[at : at + draw.randint(1, 30)]
    elif how == 2:
        data[at:at] = data[at : at + draw.randint(1, 200)]
    elif at < len(data):
        data[at] ^= 1 << draw.randrange(8)


def in_chunks(
    finding: Finding, cases: Sequence[tuple[str, Any]], look: Callable[[Any], list[str]]
) -> None:
    """Look at cases in child processes, so that a case which hangs or kills is only one."""
    at = 0
    while at < len(cases):
        chunk = cases[at : at + CHUNK]

        def look_at_all(say: Say, chunk: Sequence[tuple[str, Any]] = chunk) -> None:
            for _, case in chunk:
                signal.alarm(PATIENCE_S)
                say(problems=look(case))

        heard = processes.run(look_at_all, 10 * PATIENCE_S)
        said = [one["problems"] for one in heard.said if "problems" in one]
        for (name, _), problems in zip(chunk, said, strict=False):
            finding.count(name, problems)
        if len(said) < len(chunk):
            finding.count(chunk[len(said)][0], [f"signal {heard.signal}", *heard.problems])
            at += 1
        at += len(said)
