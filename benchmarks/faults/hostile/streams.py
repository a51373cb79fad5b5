"""Hostile streams: read, and given to `cedit apply`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults import commands
from benchmarks.faults.findings import Finding
from benchmarks.faults.hostile.mutation import in_chunks, mutate
from benchmarks.faults.kills import scratch
from benchmarks.faults.workload import copied
from continual.streams import open_stream

GOOD = {
    "prompt": "The capital of Australia is",
    "target_new": "Sydney",
    "subject": "Australia",
    "relation": "capital",
    "rephrases": ["Australia's capital is"],
    "locality": [{"prompt": "The capital of France is", "answer": "Paris"}],
}
WRONG_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    10**400,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\0",
    "\ud800",
    "\u202e\u200b",
    "x" * 20_000,
    [],
    [[]],
    {},
    {"prompt": {}},
    [None],
    [1, "a", {}],
)


def whole_streams() -> dict[str, bytes]:
    """Return streams that are wrong as a whole."""
    line = json.dumps(GOOD).encode()
    deep = 100_000
    return {
        "empty": b"",
        "blank": b" \n\t\r\n\n",
        "byte order mark": b"\xef\xbb\xbf" + line,
        "two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbf" + line,
        "utf-16": line.decode().encode("utf-16"),
        "NUL bytes": bytes(5000),
        "NUL in a line": line[:20] + b"\0" + line[20:],
        "random bytes": random.Random(1).randbytes(20_000),
        "a huge line": b'{"prompt":"' + b"x" * 5_000_000 + b'"}\n' + line,
        "a huge line without an end": b"y" * 3_000_000,
        "deep lists": b"[" * deep,
        "deep lists that close": b"[" * deep + b"]" * deep,
        "deep objects": b'{"a":' * deep + b"1" + b"}" * deep,
        "deep in a line": b'{"prompt":' + b"[" * deep + b"]" * deep + b"}\n" + line,
        "an array cut off": b"[" + line + b",",
        "an array with rubbish behind": b"[" + line + b"] x",
        "an array of rubbish": b'[1, null, "a", [[]], {}, NaN]',
        "no objects": b'1\nnull\n"a"\n[]\nNaN\nInfinity\n-\n',
        "repeated keys": b'{"prompt":"a","prompt":"b","target_new":"c"}\n',
        "a long number": b'{"prompt":"a","target_new":' + b"9" * 10_000 + b"}\n",
        "carriage returns": line + b"\r" + line + b"\r\n",
        "no newline at the end": line,
        "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.",
        "bad escapes": b'{"prompt":"\\ud800\\u0000\\x","target_new":"a"}\n',
    }


def wrong_types() -> Iterator[tuple[str, bytes]]:
    """Yield a good record with each of its values wrong in each way."""
    for key in (*GOOD, "held_out_rephrases", "portability", "id", "case_id", "requested_rewrite"):
        for value in WRONG_VALUES:
            record = {**GOOD, key: value}
            yield f"{key} = {value!r:.40}", json.dumps(record).encode() + b"\n"


def mutated_streams(count: int, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield good records with bytes changed, lost, repeated and put in."""
    good = b"".join(json.dumps({**GOOD, "subject": f"S{n}"}).encode() + b"\n" for n in range(3))
    for number in range(count):
        data = bytearray(good if draw.random() < 0.7 else b"[" + good.replace(b"\n", b",") + b"{}]")
        for _ in range(draw.choice((1, 1, 2, 8, 40))):
            mutate(data, draw)
        yield f"mutation {number}", bytes(data)


def read_stream(file: Path, data: bytes) -> list[str]:
    """Return the faults of reading a stream: every item has requests or a reason, or it ends."""
    file.write_bytes(data)
    try:
        return [
            f"item {item.number} has neither requests nor a reason"
            for item in open_stream(str(file))
            if not item.requests and not item.reason
        ]
    except Exception as error:
        return [] if hasattr(error, "exit_code") else [repr(error)]


def of_streams(finding: Finding, mutations: int) -> None:
    """Read hostile streams."""
    cases = [*whole_streams().items(), *wrong_types()]
    cases += mutated_streams(mutations, random.Random(0))
    with scratch() as folder:
        in_chunks(finding, cases, lambda case: read_stream(folder / "stream", case))


def of_applied_streams(finding: Finding, is_short: bool) -> None:
    """Give hostile streams to `cedit apply`, with something good behind."""
    with scratch() as folder:
        streams = whole_streams()
        for name in ["bad escapes"] if is_short else streams:
            file = folder / "stream.jsonl"
            file.write_bytes(streams[name])
            path = copied(commands.new_store(), folder / "store")
            done = commands.run("apply", str(file), "--store", str(path), "--json")
            finding.count(name, done.problems)
            if not is_short:
                done = commands.run("apply", "-", "--store", str(path), stdin=streams[name])
                finding.count(f"{name}, by standard input", done.problems)
