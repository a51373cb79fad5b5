"""Measures how a store takes every fault: injects it and prints cases and violations.

    python -m benchmarks.faults [--short] [--only NAME,...] [--json OUT]

The full form takes about half an hour on two cores. Exits with 1 if something acknowledged was
lost, something damaged went unnoticed, an error had no name, or a control noticed nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import tables
from benchmarks.faults import (
    damage,
    failing_disk,
    failing_memory,
    histories,
    hostile,
    kills,
    many_processes,
    power_loss,
    server_kills,
    soak,
)
from benchmarks.faults.findings import Finding
from benchmarks.tables import TextColumn

COLUMNS = (
    TextColumn("fault", "fault"),
    TextColumn("cases", "cases", "d"),
    TextColumn("violations", "violations", "d"),
    TextColumn("", "verdict"),
    TextColumn("note", "note"),
)
FAULTS: dict[str, Callable[[bool], Iterator[Finding]]] = {
    "power-loss": power_loss.find,
    "kills": kills.find,
    "server-kills": server_kills.find,
    "failing-disk": failing_disk.find,
    "failing-memory": failing_memory.find,
    "damage": damage.find,
    "many-processes": many_processes.find,
    "histories": histories.find,
    "hostile": hostile.find,
    "soak": soak.find,
}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the form that the tests run")
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(FAULTS)
    if strangers := set(chosen) - set(FAULTS):
        parser.error(f"no such fault: {', '.join(sorted(strangers))}")
    findings = [finding for name in chosen for finding in _timed(name, options.short)]
    rows = [finding.row() for finding in findings]
    tables.show("Faults, and what came of them", COLUMNS, rows)
    tables.write_json(options.json, "faults", {"short": options.short, "faults": rows})
    sys.exit(int(not all(finding.is_sound for finding in findings)))


def _timed(name: str, is_short: bool) -> Iterator[Finding]:
    begun = time.monotonic()
    for finding in FAULTS[name](is_short):
        tables.note(f"{name}: {finding.fault}: {finding.cases} cases, {finding.violations} bad")
        if not finding.control:
            for example in finding.examples:
                tables.note(f"    {example}")
        yield finding
    tables.note(f"{name} took {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
