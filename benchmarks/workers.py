"""Measures the cost of workers beside one process, and how it grows with the number of probes.

    python -m benchmarks.workers [--probes 1000,10000,100000] [--workers 1,2] [--texts N]
                                 [--cluster local] [--json OUT]

On the atlas, behind one batch of MEMIT: a full re-check of so many probes, key statistics over some
text, and the search for the values of a batch in chunks, each in this process and then by workers
that are there already. Every result is compared, bit for bit. The table has the seconds by the
clock, and those of processors (of this process and of the workers together), which other work on
the machine does not change; the share is of the one process's. It has the bytes that went to
workers and came back, too. A further row projects the re-check to a million probes by the largest
two. Workers gain by processors that are free: on a machine without, the table shows their overhead.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import tables
from benchmarks.capacity import requests_of_atlas
from benchmarks.tables import TextColumn
from continual.execution import Executor
from continual.execution.local import LOCAL
from continual.locate_then_edit.config import ValueSearchConfig
from continual.locate_then_edit.edit_texts import texts_of_edit
from continual.locate_then_edit.targets import find_targets
from continual.new_store import NewStore, init
from continual.passes.batching import by_length
from continual.proposals import Edit
from continual.recheck.encoded_requests import encode
from continual.session import Session
from continual.site import Site
from continual.statistics.moments import read_keys
from continual.tasks import Encoding
from continual.watch.config import UNWATCHED
from continual.workers.choice import executor_of
from continual.workers.crew import Crew, Seats
from continual.workers.processes import LocalProcesses

COLUMNS = (
    TextColumn("work", "work"),
    TextColumn("items", "items"),
    TextColumn("workers", "workers"),
    TextColumn("s, clock", "seconds", ".2f"),
    TextColumn("s, processors", "busy_s", ".2f"),
    TextColumn("of one process", "share", ".2f"),
    TextColumn("KB there", "sent_kb", ",.0f"),
    TextColumn("KB back", "received_kb", ",.0f"),
    TextColumn("same bits", "is_same"),
)
PROJECTED = 1_000_000
CHUNK = 8  # requests of a search
PASS_TOKENS = 4096


class Metered:
    """The seats of a crew, with the bytes that pass counted."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self.count, self.remedy = seats.count, seats.remedy
        self.sent = self.received = 0

    def post(self, seat: int, message: bytes) -> bool:
        self.sent += len(message)
        return self._seats.post(seat, message)

    def wait(self, seats: Collection[int]) -> dict[int, bytes | None]:
        replies = self._seats.wait(seats)
        self.received += sum(len(reply or b"") for reply in replies.values())
        return replies

    def renew(self, seat: int) -> str:
        return self._seats.renew(seat)

    @property
    def busy_s(self) -> float:
        """The processor seconds of all workers on this machine so far."""
        pids = self._seats.pids() if isinstance(self._seats, LocalProcesses) else []
        return sum(map(_busy_s, pids))

    def close(self) -> None:
        self._seats.close()


@dataclass(frozen=True)
class Work:
    """One measured map: its name, the number of its items, and a run by an executor."""

    name: str
    items: int
    run: Callable[[Executor], Any]


def works(session: Session, probes: Sequence[int], texts: int) -> Iterator[Work]:
    """Yield the maps to be measured."""
    encodings = [entry.encoding for entry in session.run_state.ledger.entries]
    for count in probes:
        many = list(islice(cycle(encodings), count))
        yield Work("re-check", count, partial(_recheck, session, many))
    pieces = [list(e.ids) for e in islice(cycle(encodings), texts)]
    groups = [[pieces[i] for i in b] for b in by_length([*map(len, pieces)], PASS_TOKENS)]
    yield Work("keys of statistics", texts, lambda e: _keys(session, groups, e))
    yield Work("values of a batch", 48, lambda e: _values(session, e))


def _recheck(session: Session, encodings: Sequence[Encoding], executor: Executor) -> list[bool]:
    return Site(session.edited, session.task, executor).judge_in_full(encodings)


def _keys(session: Session, groups: Sequence[Any], executor: Executor) -> list[Any]:
    read = partial(read_keys, session.edited, (0, 1))
    return [float(k.double().sum()) for keys in executor.map(read, groups) for k in keys.values()]


def _values(session: Session, executor: Executor) -> list[Any]:
    site = Site(session.edited, session.task, executor)
    config = ValueSearchConfig(chunk=CHUNK)
    batch = [texts_of_edit(edit, ("",), site) for edit in _edits(session, site)]
    found = find_targets(site, batch, 0, config)
    return [found.states.tolist(), found.losses]


def _edits(session: Session, site: Site) -> list[Edit]:
    """Return the edits of 48 corrections behind those of the batch."""
    edits = []
    for request in requests_of_atlas()[64:112]:
        encoded = encode(request, session.task)
        rows = site.rows(encoded.learned).split([len(e.targets) for e in encoded.learned])
        edits.append(Edit(request, encoded.learned, rows, encoded.forms))
    return edits


def _busy_s(pid: int) -> float:
    """Return the processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    user, system = fields[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measured:
    """One run of a map."""

    seconds: float
    busy_s: float  # of this process and of the workers
    result: Any


def measured(work: Work, executor: Executor, seats: Metered | None = None) -> Measured:
    """Measure one run."""
    began, busy_s = time.perf_counter(), time.process_time() + (seats.busy_s if seats else 0.0)
    result = work.run(executor)
    seconds = time.perf_counter() - began
    ended = time.process_time() + (seats.busy_s if seats else 0.0)
    return Measured(seconds, ended - busy_s, result)


def rows_of(work: Work, crews: Sequence[tuple[Crew, Metered]]) -> Iterator[dict[str, Any]]:
    """Yield a row for this process and one for each crew."""
    alone = measured(work, LOCAL)
    row = {"work": work.name, "items": work.items}
    yield {**row, "workers": 0, "seconds": alone.seconds, "busy_s": alone.busy_s, "share": 1.0}
    for crew, seats in crews:
        seats.sent = seats.received = 0
        run = measured(work, crew, seats)
        yield {
            **row,
            "workers": seats.count,
            "seconds": run.seconds,
            "busy_s": run.busy_s,
            "share": run.busy_s / alone.busy_s,
            "sent_kb": seats.sent / 1000,
            "received_kb": seats.received / 1000,
            "is_same": run.result == alone.result,
        }


def projected(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the re-check of a million probes, by a line through the largest two that were run."""
    for workers in dict.fromkeys(row["workers"] for row in rows):
        points = [
            (r["items"], r["busy_s"])
            for r in rows
            if r["work"] == "re-check" and r["workers"] == workers
        ][-2:]
        if len(points) == 2:
            (n1, s1), (n2, s2) = points
            seconds = s2 + (PROJECTED - n2) * (s2 - s1) / (n2 - n1)
            yield {
                "work": "re-check, projected",
                "items": PROJECTED,
                "workers": workers,
                "busy_s": seconds,
            }


def started(workers: int, cluster: str | None) -> tuple[Crew, Metered, float]:
    """Return a crew whose workers are there, its counted seats, and the seconds of their start."""
    crew = executor_of(workers, cluster)
    assert isinstance(crew, Crew)
    seats = Metered(crew.seats)
    crew = Crew(seats)
    began = time.perf_counter()
    list(crew.map(abs, range(4 * workers)))
    return crew, seats, time.perf_counter() - began


def run(options: argparse.Namespace) -> None:
    """Measure, and show the table."""
    with TemporaryDirectory() as folder:
        new = NewStore(watch=UNWATCHED, calibration={"at_first_use": False})
        with init(Path(folder) / "store", new) as session:
            settings = session.settings(chain=("memit",), batch_size=64)
            list(session.apply_requests(requests_of_atlas()[:64], settings))
            crews = [started(n, None) for n in options.workers]
            if options.cluster:
                crews.append(started(options.workers[-1], options.cluster))
            rows: list[dict[str, Any]] = []
            for work in works(session, options.probes, options.texts):
                for row in rows_of(work, [(crew, seats) for crew, seats, _ in crews]):
                    tables.note(json.dumps(row))
                    rows.append(row)
            starts = [{"workers": s.count, "seconds": start} for _, s, start in crews]
            for crew, _, _ in crews:
                crew.close()
    rows += projected(rows)
    tables.show("Workers on the atlas", COLUMNS, rows)
    start_columns = (TextColumn("workers", "workers"), TextColumn("start, s", "seconds", ".1f"))
    tables.show("Their start", start_columns, starts)
    tables.write_json(options.json, "workers", {"rows": rows, "starts": starts})


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workers", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--probes", type=_numbers, default=[1000, 10_000, 100_000], metavar="N,…")
    parser.add_argument("--workers", type=_numbers, default=[1, 2], metavar="N,…")
    parser.add_argument("--texts", type=int, default=2000, metavar="N", help="of the statistics")
    parser.add_argument("--cluster", metavar="ADDRESS", help="also on a cluster of Ray's: local")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run(options)


if __name__ == "__main__":
    main()
