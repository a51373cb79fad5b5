"""`cedit show`: one revision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from cli.options import common, find_store, revision_names
from cli.output import WATCHED, Output, one_line, rates, short, size

_TOLD = (
    *("editor", "attempt", "neurons", "records", "steps", "loss", "condition", "residual"),
    *("repair", "reason"),
)
"""What is told of an outcome, in this order."""


@click.command("show")
@click.argument("revision", shell_complete=revision_names, default="head")
@common
def command(out: Output, store: str | None, revision: str) -> None:
    """Show one revision and its requests.

    The revision is head unless named. A request is shown with what became of it, and why.

    \b
    Example:
      cedit show head
      cedit show head~3 --json
    """
    from continual.history.inspection import details
    from store import Store

    with Store.open(find_store(store)) as opened:
        record = details(opened, opened.revision(revision))
    out.result(record, *_text(record))


def _text(record: Mapping[str, Any]) -> Iterator[str]:
    tags = "".join(f"  [{tag}]" for tag in record["tags"])
    yield f"@{record['seq']} {record['revision']}{tags}"
    yield f"operation    {record['operation']}"
    if record["parent"]:
        yield f"parent       {short(record['parent'])}"
    if record["target"]:
        yield f"target       {short(record['target'])}"
    yield f"fingerprint  {short(record['fingerprint'])}"
    if record["patch"]:
        yield f"patch        {short(record['patch'])}, {size(record['patch_bytes'])}"
    yield f"metrics      {rates(record, 'SR', 'GR', 'ER', 'TrainR', 'TestR', 'Locality')}"
    yield f"             {rates(record, *WATCHED)}"
    for request in record["reverted"]:
        yield one_line(f"without      {request['prompt']} → {request['target_new']}")
    for name, position in record["streams"].items():
        yield f"stream       {name}, up to record {position}"
    for number in record["quarantined_records"]:
        yield f"quarantined  line {number}"
    for outcome in record["outcomes"]:
        yield ""
        yield from _outcome(outcome)
    if record["changed"]:
        yield ""
        yield "Changed, and should not have been:"
    for change in record["changed"]:
        prompt, before, after = (one_line(change[name]) for name in ("prompt", "before", "after"))
        yield f"  ({change['role']})  {prompt} → {before} | now {after}"


def _outcome(outcome: Mapping[str, Any]) -> Iterator[str]:
    yield f"{outcome['outcome']:<11}  {one_line(outcome['prompt'])}"
    yield f"             → {one_line(outcome['target_new'])}  ({outcome['id']})"
    if outcome.get("forms"):
        yield f"             asked in these forms: {', '.join(outcome['forms'])}"
    if beside := _beside(outcome):
        yield f"             beside it: {one_line(beside)}"
    told = ", ".join(f"{name} {outcome[name]}" for name in _TOLD if outcome.get(name))
    if told:
        yield f"             {one_line(told)}"
    if "chosen_for" in outcome:
        yield f"             chosen for it: {one_line(outcome['chosen_for'])}"
    if "answered_by" in outcome:
        yield f"             right before its edit, by that of {short(outcome['answered_by'])}"
    for editor, reason in outcome.get("passed_by", {}).items():
        yield f"             not by {editor}: {one_line(reason)}"
    for identity in outcome.get("supersedes", ()):
        yield f"             supersedes {short(identity)}"


def _beside(outcome: Mapping[str, Any]) -> str:
    """What the source says beside a correction: its own name for it, and keys nobody knows."""
    pairs = {"case": outcome.get("case"), **outcome.get("extra", {})}
    return ", ".join(f"{key} {value}" for key, value in pairs.items() if value is not None)
