"""`cedit queue`: the corrections that wait, and what is decided about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import EditorChain, common, find_store, require_writable
from cli.output import Output, columns, counted, one_line, rates, short

if TYPE_CHECKING:
    from continual.requests import Request
    from store import Store

PARTLY_DONE = 3
LISTED = ("flagged", "pending", "approved", "applying", "failed", "broken")
"""States that are listed unless others are named."""

Numbers = click.argument("numbers", type=click.IntRange(1), nargs=-1, required=True)
Why = click.option("--why", default="", help="The reason, which is kept.")
Editor = click.option(
    "--editor", type=EditorChain(), metavar="E[,E2]", help="The editors to apply it by."
)


@click.group("queue")
def command() -> None:
    """Show the corrections that wait, and decide about them.

    A correction is pending until somebody approves or rejects it. `cedit serve` applies approved
    ones; so does `cedit queue apply` where no server runs. While a server runs, these commands go
    through it. Every subcommand has --store and --json.

    \b
    Example:
      cedit queue list
      cedit queue approve 3 4 --why "checked with the atlas"
    """


@command.command("list")
@click.option("--state", "states", multiple=True, help="Only in this state (repeatable).")
@click.option("--all", "is_all", is_flag=True, help="In every state.")
@common
def list_queue(out: Output, store: str | None, states: tuple[str, ...], is_all: bool) -> None:
    """List the corrections that wait for something.

    With --json a record for each: {"number","state","prompt","target_new","subject","request",
    "source","editor","made_at","changed_at","who","duplicate_of","revision","held_by"}.

    \b
    Example:
      cedit queue list
      cedit queue list --state verified --json
    """
    from continual.review.queue import CorrectionQueue
    from continual.review.states import STATES
    from continual.review.telling import told
    from store import Store

    if strangers := set(states) - set(STATES):
        raise click.UsageError(f"There is no state {min(strangers)!r}: {', '.join(STATES)}.")
    with Store.open(find_store(store)) as opened:
        queue = CorrectionQueue(opened)
        items = queue.items(STATES if is_all else states or LISTED)
        counts = queue.counts()
    records = [told(item) for item in items]
    for record in records:
        out.record({"type": "queued", **record})
    if records:
        rows = [_row(record) for record in records]
        names = ("nr", "state", "date", "who", "prompt", "target")
        out.text(columns(names, rows, right="nr", shrinks="prompt"))
    found = {state: count for state, count in counts.items() if count}
    out.text(", ".join(f"{count} {state}" for state, count in found.items()) or "An empty queue.")


def _row(record: Mapping[str, Any]) -> tuple[object, ...]:
    date = record["changed_at"][:10]
    target = record["target_new"] or "?"
    return record["number"], record["state"], date, record["who"], record["prompt"], target


@command.command("show")
@click.argument("number", type=click.IntRange(1))
@common
def show(out: Output, store: str | None, number: int) -> None:
    """Show a correction: its content, decisions, proof, and the corrections it conflicts with.

    With --json the record of `list`, and "content","origin","events","proof","conflicts".

    \b
    Example:
      cedit queue show 3
    """
    from continual.review.conflicts import InForce
    from continual.review.queue import CorrectionQueue
    from continual.review.telling import told_whole
    from store import Store

    with Store.open(find_store(store)) as opened:
        record = told_whole(CorrectionQueue(opened).get(number), InForce(opened))
    out.result({"type": "queued", **record}, *_lines(record))


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    proof = record["proof"]
    yield one_line(f"{record['number']} {record['state']}: {record['prompt']}")
    yield one_line(f"  right    {record['target_new'] or 'nobody has said yet'}")
    for name, value in (
        ("subject", record["subject"]),
        ("said", record["origin"].get("answer")),
        ("before", proof.get("before")),
        ("after", proof.get("after")),
        ("editor", proof.get("editor") or record["editor"]),
        ("revision", record["revision"] and short(record["revision"])),
    ):
        if value:
            yield one_line(f"  {name:<8} {value.strip()}")
    for conflict in record["conflicts"]:
        yield one_line(f"  replaces {conflict['prompt']} → {conflict['target_new']}")
    if proof.get("rates"):
        yield "  " + rates(proof["rates"], "SR", "GR", "ER", "TrainR", "TestR", "Locality")
    for event in record["events"]:
        why = f": {event['why']}" if event.get("why") else ""
        yield one_line(f"  {event['at'][:16]}  {event['state']:<10} {event['who']}{why}")


@command.command("approve")
@Numbers
@Why
@Editor
@common
def approve(
    out: Output, store: str | None, numbers: tuple[int, ...], why: str, editor: str | None
) -> None:
    """Approve corrections: all of them, or none if one cannot be.

    \b
    Example:
      cedit queue approve 3 4
      cedit queue approve 5 --editor serac --why "a subject with many facts"
    """
    _decide(out, store, numbers, "approve", why, editor)


@command.command("reject")
@Numbers
@Why
@common
def reject(out: Output, store: str | None, numbers: tuple[int, ...], why: str) -> None:
    """Reject corrections: all of them, or none if one cannot be.

    \b
    Example:
      cedit queue reject 3 --why "the answer was right"
    """
    _decide(out, store, numbers, "reject", why, None)


@command.command("reopen")
@Numbers
@Why
@common
def reopen(out: Output, store: str | None, numbers: tuple[int, ...], why: str) -> None:
    """Let corrections wait for a decision again.

    \b
    Example:
      cedit queue reopen 3
    """
    _decide(out, store, numbers, "reopen", why, None)


def _decide(
    out: Output,
    store: str | None,
    numbers: tuple[int, ...],
    decision: str,
    why: str,
    editor: str | None,
) -> None:
    from cli.queueing import door_of

    with door_of(find_store(store)) as door:
        records = door.decide(list(dict.fromkeys(numbers)), decision, why, editor)
    for record in records:
        line = f"{record['number']} {record['state']}: {record['prompt']}"
        out.result({"type": "queued", **record}, one_line(line))


@command.command("add")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@Why
@Editor
@common
def add(
    out: Output, store: str | None, files: tuple[str, ...], why: str, editor: str | None
) -> int:
    """Hand in the corrections of files, in every format that `cedit apply` reads.

    A file may be given again: its records that are in the queue are not added twice. Exit code 3
    means that records could not be read; the others are in the queue.

    With --json a record for each correction, as `list` has it, with "repeated", and a last one:
    {"type":"added","new","repeated","unreadable":[{"file","line","reason"}]}.

    \b
    Example:
      cedit queue add corrections.jsonl
      cedit queue add langfuse.csv --why "thumbs down of this week"
    """
    from cli.queueing import door_of
    from store import Store

    path = find_store(store)
    with Store.open(path) as opened:
        read = [entry for file in files for entry in _entries(opened, file)]
    requests = [entry for entry in read if not isinstance(entry, dict)]
    unreadable = [entry for entry in read if isinstance(entry, dict)]
    with door_of(path) as door:
        records = door.add(requests, why, editor)
    for record in records:
        out.record({"type": "queued", **record})
    repeated = sum(record["repeated"] for record in records)
    told = {"type": "added", "new": len(records) - repeated, "repeated": repeated}
    lines = [one_line(f"{e['file']}:{e['line']}: {e['reason']}") for e in unreadable]
    count = counted(len(records) - repeated, "correction")
    out.result({**told, "unreadable": unreadable}, *lines, f"{count} added, {repeated} known")
    return PARTLY_DONE if unreadable else 0


def _entries(store: Store, file: str) -> Iterator[tuple[Request, str] | dict[str, Any]]:
    """Yield the requests of a file with their keys, and records for lines that cannot be read."""
    from continual.streams.places import stream_for

    for item in stream_for(store, file):
        if item.reason is not None:
            yield {"file": file, "line": item.number, "reason": item.reason}
        for request in item.requests:
            place = f"{Path(file).name} {item.number} {request.id}"
            yield request, "file " + hashlib.sha256(place.encode()).hexdigest()


@command.command("apply")
@common
def apply(out: Output, store: str | None) -> int:
    """Apply the approved corrections here, where no server runs.

    Exit code 3 means that one of them failed, or is not answered rightly when the model is asked.
    With --json a record for each, as `show` has it.

    \b
    Example:
      cedit queue apply
    """
    path = find_store(store)
    require_writable(path)
    from continual.review.applying import apply_next, settle
    from continual.review.conflicts import InForce
    from continual.review.queue import CorrectionQueue
    from continual.review.states import VERIFIED
    from continual.review.telling import told_whole
    from continual.session import open_session

    count = verified = 0
    with open_session(path) as session:
        queue, in_force = CorrectionQueue(session.store), InForce(session.store)
        settle(session, queue)
        while (item := apply_next(session, queue)) is not None:
            count, verified = count + 1, verified + (item.state == VERIFIED)
            record = told_whole(item, in_force)
            out.result({"type": "queued", **record}, *_lines(record))
    out.text(f"{counted(count, 'correction')} applied, {verified} verified")
    return PARTLY_DONE if verified < count else 0
