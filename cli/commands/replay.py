"""`cedit replay`: the model built again from base, patch by patch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from cli.options import common, find_store, ranges
from cli.output import Output, counted, short

if TYPE_CHECKING:
    from continual.replaying import Rebuilt

DAMAGED = 20


@click.command("replay")
@click.argument("range_", metavar="[A..B]", shell_complete=ranges, default="base..head")
@common
def command(out: Output, store: str | None, range_: str) -> int:
    """Build the model again from base.

    The fingerprint is compared at every revision of the range (all of head's unless given).
    Exit code 20 says that one is not what the history says.

    \b
    Example:
      cedit replay
      cedit replay head~10..head
    """
    from continual.replaying import rebuild
    from continual.session import open_session
    from store import parse_range

    started, wrong, count = time.perf_counter(), 0, 0
    with open_session(find_store(store), writable=False, at="base") as session:
        older, newer = parse_range(range_)
        wanted = {revision.id for revision in session.store.between(older, newer)}
        for made in rebuild(session, session.store.lineage(newer)):
            if made.revision.id in wanted:
                count, wrong = count + 1, wrong + (not made.is_same)
                _show(out, made)
    out.result(
        {
            "type": "summary",
            "revisions": count,
            "mismatches": wrong,
            "ok": not wrong,
            "seconds": round(time.perf_counter() - started, 3),
        },
        f"{counted(count, 'revision')} rebuilt, {wrong or 'none'} with another fingerprint.",
    )
    return DAMAGED if wrong else 0


def _show(out: Output, made: Rebuilt) -> None:
    """One revision: on record and rebuilt."""
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
