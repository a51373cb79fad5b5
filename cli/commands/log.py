"""`cedit log`: lists the revisions, newest first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from cli.corrections import ID_DIGITS
from cli.options import common, find_store, ranges
from cli.output import Output, columns, day, rate, short

if TYPE_CHECKING:
    from store import Revision, Store

NAMES = ("seq", "revision", "date", "edits", "ER", "about", "")


@click.command("log")
@click.argument("range_", metavar="[RANGE]", shell_complete=ranges, required=False)
@click.option("--all", "everything", is_flag=True, help="All entries, rolled back ones too.")
@click.option("-n", "--limit", type=click.IntRange(1), metavar="N", help="At most this many.")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M"]),
    metavar="DATE",
    help="Those measured on that day (2026-11-30) or later.",
)
@click.option("--grep", metavar="TEXT", help="Those with a request that has this text.")
@click.option("--failed", is_flag=True, help="Those with a request that failed.")
@common
def command(
    out: Output,
    store: str | None,
    range_: str | None,
    everything: bool,
    limit: int | None,
    **filters: Any,
) -> None:
    """List the revisions, newest first.

    Without options they are head and its ancestors; a range A..B lists the revisions in it, --all
    the whole journal.

    \b
    Example:
      cedit log -n 20
      cedit log head~5..head
      cedit log --since 2026-11-30 --failed
      cedit log --grep Australia
    """
    from store import Store

    if range_ and everything:
        raise click.UsageError("Give either a range or --all.")
    with Store.open(find_store(store)) as opened:
        revisions = list(opened.revisions()) if everything else _lineage(opened, range_)
        records = list(islice(_entries(opened, revisions[::-1], **filters), limit))
    for record in records:
        out.record(record)
    out.text(columns(NAMES, map(_row, records), right="seq edits ER", shrinks="about"))


def _entries(
    store: Store,
    revisions: Iterable[Revision],
    since: datetime | None,
    grep: str | None,
    failed: bool,
) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of the revisions that pass every filter."""
    from continual.history.inspection import entry, has_text

    limit = since.isoformat() if since else ""
    for revision in revisions:
        if grep and not has_text(store, revision, grep):
            continue
        record = entry(store, revision)
        is_late = not limit or (record["measured_at"] or "") >= limit
        if is_late and (record["failed"] or not failed):
            yield record


def _lineage(store: Store, range_: str | None) -> list[Revision]:
    """Return the revisions of a range, or a revision (head if None) with all its ancestors."""
    from store import parse_range

    if range_ and ".." in range_:
        return store.between(*parse_range(range_))
    return store.lineage(range_ or "head")


def _row(record: Mapping[str, Any]) -> Iterator[object]:
    from store import operations

    is_edit = record["operation"] == operations.EDIT
    yield f"@{record['seq']}"
    yield " ".join([record["revision"][:ID_DIGITS], *(f"[{tag}]" for tag in record["tags"])])
    yield day(record["measured_at"])
    yield _edits(record) if is_edit else ""
    yield rate(record["ER"]) if is_edit or record["ER"] is not None else ""
    yield from _about(record) if is_edit else _moved(record)


def _edits(record: Mapping[str, Any]) -> str:
    """Return the number of corrections applied, with the number attempted if some failed."""
    count = f"{record['applied']}"
    return f"{count} of {record['attempted']}" if record["failed"] else count


def _about(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return the first prompt of an edit, and its target with the number of further requests."""
    return _one_of(record["first"], record["requests"]) if record["first"] else ("", "")


def _moved(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name and the object of an operation that is no edit."""
    operation = record["operation"]
    if record["target"]:
        return operation, f"to {short(record['target'])}"
    if record["reverted"]:
        prompt, target = _one_of(record["reverted"][0], len(record["reverted"]))
        return f"{operation}: {prompt}", target
    return operation, record["erased"] or record["given_back"] or ""


def _one_of(request: Mapping[str, Any], count: int) -> tuple[str, str]:
    suffix = f" and {count - 1} more" if count > 1 else ""
    return request["prompt"], f"→ {request['target_new']}{suffix}"
