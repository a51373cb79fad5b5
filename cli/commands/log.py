"""`cedit log`: the revisions, newest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from cli.options import common, find_store, ranges
from cli.output import Output, columns, rate, short, size

if TYPE_CHECKING:
    from store import Revision, Store

NAMES = ("seq", "revision", "operation", "applied", "failed", "ER", "patch", "about")


@click.command("log")
@click.argument("range_", metavar="[RANGE]", shell_complete=ranges, required=False)
@click.option("--all", "everything", is_flag=True, help="All entries, rolled back ones too.")
@click.option("--limit", type=click.IntRange(1), help="At most this many.")
@common
def command(
    out: Output, store: str | None, range_: str | None, everything: bool, limit: int | None
) -> None:
    """List the revisions, newest first.

    Those are head and its ancestors, the ones in a range A..B, or --all of the journal.

    \b
    Example:
      cedit log --limit 20
      cedit log head~5..head
    """
    from continual.history.inspection import entry
    from store import Store

    if range_ and everything:
        raise click.UsageError("Give either a range or --all.")
    with Store.open(find_store(store)) as opened:
        chosen = _everything(opened, limit) if everything else _lineage(opened, range_)
        records = [entry(opened, revision) for revision in chosen[::-1][:limit]]
    for record in records:
        out.record(record)
    out.text(columns(NAMES, map(_row, records), right="seq applied failed ER patch"))


def _everything(store: Store, limit: int | None) -> list[Revision]:
    first = 0 if limit is None else max(0, store.length - limit)
    return list(store.revisions(first))


def _lineage(store: Store, range_: str | None) -> list[Revision]:
    """The revisions of a range, or a revision with all before it; head's without either."""
    from store import parse_range

    if range_ and ".." in range_:
        return store.between(*parse_range(range_))
    return store.lineage(range_ or "head")


def _row(record: Mapping[str, Any]) -> Iterator[object]:
    from store import operations

    is_edit = record["operation"] == operations.EDIT
    yield f"@{record['seq']}"
    yield " ".join([short(record["revision"]), *(f"[{tag}]" for tag in record["tags"])])
    yield record["operation"]
    yield record["applied"] if is_edit else ""
    yield record["failed"] if is_edit else ""
    yield rate(record["ER"]) if is_edit or record["ER"] is not None else ""
    yield size(record["patch_bytes"]) if record["patch_bytes"] else ""
    yield f"to {short(record['target'])}" if record["target"] else _about(record)


def _about(record: Mapping[str, Any]) -> str:
    """The first request of a revision, and how many there are besides."""
    if record["reverted"]:
        return f"without {_one_of(record['reverted'][0], len(record['reverted']))}"
    return _one_of(record["first"], record["requests"]) if record["first"] else ""


def _one_of(request: Mapping[str, Any], count: int) -> str:
    more = f" and {count - 1} more" if count > 1 else ""
    return f"{request['prompt']} → {request['target_new']}{more}"
