"""Checks that a run killed at random times, and a history walked back and forth, lose nothing.

    python -m benchmarks.durability [--corrections N] [--kills N] [--rollbacks N] [--json OUT]

Kills a run of the atlas's corrections with SIGKILL at random moments and gives the same command
again until it ends. Its head must be the revision, and its fingerprint the bits, of a run that
nothing interrupted, with every request in it once. Then head moves to random revisions; each must
have the fingerprint that it had when it was made. At the end the whole history is rebuilt from
base. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.tables import TextColumn
from continual.embedded import ATLAS
from continual.history.replaying import verify
from continual.recheck.retention import outcomes_of
from continual.session import open_session
from store import Revision, Store

COLUMNS = (
    TextColumn("check", "check"),
    TextColumn("cases", "cases", "d"),
    TextColumn("violations", "bad", "d"),
)
WAIT_MAX_S = 8.0  # from a run's start to its death


def cedit(*arguments: str) -> list[str]:
    """Return the command line of a cedit process."""
    return [sys.executable, "-m", "cli.main", *arguments]


def apply_whole(stream: Path, store: Path) -> None:
    """Apply the stream in one run that nothing interrupts."""
    subprocess.run(cedit("init", str(store), "--no-watch"), check=True, capture_output=True)
    subprocess.run(
        cedit("apply", str(stream), "--store", str(store)), check=True, capture_output=True
    )


def apply_killed(stream: Path, store: Path, kills: int, draw: random.Random) -> int:
    """Apply the stream in runs that are killed until one ends; return how many were killed."""
    subprocess.run(cedit("init", str(store), "--no-watch"), check=True, capture_output=True)
    killed = 0
    while True:
        command = cedit("apply", str(stream), "--store", str(store))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if killed < kills:
            time.sleep(draw.uniform(0.0, WAIT_MAX_S))
            process.kill()
        _, errors = process.communicate()
        if process.returncode == 0:
            return killed
        if process.returncode != -9:
            raise SystemExit(f"a run ended with {process.returncode}: {errors.decode()}")
        killed += 1
        tables.note(f"killed {killed} times, {_length(store) - 1} steps done")


def lineage(store: Path) -> list[Revision]:
    """Return the revisions of a store, from base to head."""
    with Store.open(store) as opened:
        return opened.lineage("head")


def twice_or_never(revisions: Sequence[Revision], expected: int) -> int:
    """Count the requests that a history has more than once, or not at all."""
    counts = Counter(o.id for revision in revisions for o in outcomes_of(revision.body))
    return sum(count - 1 for count in counts.values()) + abs(expected - len(counts))


def walk(store: Path, count: int, draw: random.Random) -> int:
    """Roll back and forward to random revisions; count the ones with another fingerprint."""
    with open_session(store) as session:
        revisions = session.store.lineage("head")
        chosen = draw.sample(revisions, count)
        wrong = 0
        for revision in chosen:
            session.rollback(revision.id)
            wrong += session.edited.fingerprint != revision.fingerprint
        session.rollback(revisions[-1].id)
        return wrong + (session.edited.fingerprint != revisions[-1].fingerprint)


def check(corrections: int, kills: int, rollbacks: int, seed: int) -> list[dict[str, Any]]:
    """Run all the checks and return the rows of the table."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        stream, whole, broken = (Path(folder) / name for name in ("stream.jsonl", "a", "b"))
        with ATLAS.corrections.open(encoding="utf-8") as lines:
            stream.write_text("".join(islice(lines, corrections)), encoding="utf-8")
        apply_whole(stream, whole)
        killed = apply_killed(stream, broken, kills, draw)
        one, other = lineage(whole), lineage(broken)
        differing = sum(a.fingerprint != b.fingerprint for a, b in zip(one, other, strict=False))
        return [
            _row("killed and resumed: another fingerprint at some step", killed, differing),
            _row(
                "the same: requests lost or doubled",
                corrections,
                twice_or_never(other, corrections),
            ),
            _row("the same: another head", 1, int(one[-1].id != other[-1].id)),
            _row(
                "rolled back or forward: another fingerprint",
                rollbacks,
                walk(broken, rollbacks, draw),
            ),
            _row(
                "verified: objects with a problem",
                1,
                len([p for p in verify(broken) if not p.harmless]),
            ),
        ]


def _row(name: str, cases: int, bad: int) -> dict[str, Any]:
    return {"check": name, "cases": cases, "bad": bad}


def _length(store: Path) -> int:
    with Store.open(store) as opened:
        return opened.length


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corrections", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rollbacks", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    rows = check(options.corrections, options.kills, options.rollbacks, options.seed)
    tables.show("A history that is killed, and walked", COLUMNS, rows)
    tables.write_json(options.json, "durability", {"checks": rows})
    sys.exit(int(any(row["bad"] for row in rows)))


if __name__ == "__main__":
    main()
