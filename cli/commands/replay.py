"""`cedit replay`: builds the model again from base, patch by patch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from cli.options import common, find_store, ranges, with_workers
from cli.output import Output, counted, one_line, short

if TYPE_CHECKING:
    from continual.execution import Executor
    from continual.history.replaying import Rebuilt
    from continual.session import Session
    from store import Revision

DAMAGED = 20


@click.command("replay")
@click.argument("range_", metavar="[A..B]", shell_complete=ranges, default="base..head")
@click.option("--recompute", is_flag=True, help="Run the editors again, and compare the patches.")
@with_workers
@common
def command(
    out: Output, store: str | None, executor: Executor, range_: str, recompute: bool
) -> int:
    """Build the model again from base.

    The fingerprint is compared at every revision of the range (base..head unless given). Revisions
    before the range may come from snapshots, which `cedit verify` never trusts. With --recompute
    each step of the range is made again from the same requests, settings and seed, and its tensors
    are compared, bit for bit. Exit code 20 means that a revision differs from the history.

    With --json there is a line for each revision, {"type":"revision","seq","revision","ok"} with
    "fingerprint" and "rebuilt", or with "difference" after --recompute; and a last one,
    {"type":"summary","revisions","mismatches","ok","seconds"}.

    \b
    Example:
      cedit replay
      cedit replay head~10..head --recompute
    """
    from continual.session import open_session
    from store import parse_range

    start, mismatches, count = time.perf_counter(), 0, 0
    with open_session(find_store(store), writable=False, at="base", executor=executor) as session:
        older, newer = parse_range(range_)
        revisions = session.store.between(older, newer)
        made_again = (
            _recomputed(out, session, revisions) if recompute else _rebuilt(out, session, revisions)
        )
        for is_same in made_again:
            count, mismatches = count + 1, mismatches + (not is_same)
    out.result(
        {
            "type": "summary",
            "revisions": count,
            "mismatches": mismatches,
            "ok": not mismatches,
            "seconds": round(time.perf_counter() - start, 3),
        },
        _verdict(count, mismatches, recompute),
    )
    return DAMAGED if mismatches else 0


def _verdict(count: int, wrong: int, recompute: bool) -> str:
    if recompute:
        return f"{counted(count, 'step')} made again, {wrong or 'none'} with another patch."
    return f"{counted(count, 'revision')} rebuilt, {wrong or 'none'} with another fingerprint."


def _rebuilt(out: Output, session: Session, wanted: Sequence[Revision]) -> Iterator[bool]:
    """Build the revisions, each on the one before it if that is its parent; yield whether each has
    the fingerprint on record."""
    from continual.history.replaying import rebuild

    for state in rebuild(session, wanted, from_snapshots=True):
        _show(out, state)
        yield state.is_same


def _recomputed(out: Output, session: Session, wanted: Sequence[Revision]) -> Iterator[bool]:
    from continual.history.rehearsing import recompute

    for step in recompute(session, wanted):
        revision = step.revision
        record = {
            "type": "revision",
            "seq": revision.seq,
            "revision": revision.id,
            "ok": step.is_same,
            "difference": step.difference,
        }
        verdict = "same" if step.is_same else f"NOT: {step.difference}"
        out.result(record, one_line(f"@{revision.seq:<5} {short(revision.id)}  {verdict}"))
        yield step.is_same


def _show(out: Output, made: Rebuilt) -> None:
    """Print one revision: its fingerprint on record and its rebuilt one."""
    record = {
        "type": "revision",
        "seq": made.revision.seq,
        "revision": made.revision.id,
        "fingerprint": made.revision.fingerprint,
        "rebuilt": made.fingerprint,
        "ok": made.is_same,
    }
    verdict = "same" if made.is_same else f"NOT {short(made.revision.fingerprint)}"
    place = f"@{made.revision.seq:<5} {short(made.revision.id)}"
    out.result(record, f"{place}  fingerprint {short(made.fingerprint)}  {verdict}")
