"""`cedit show`: shows one revision, or one correction with its past."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from cli.options import common, find_store, revision_names
from cli.output import WATCHED, Output, day, one_line, rates, short, size

if TYPE_CHECKING:
    from store import Store

_TOLD = (
    *("editor", "attempt", "neurons", "records", "steps", "loss", "condition", "residual"),
    *("repair", "reason"),
)
"""What is told of an outcome, in this order."""


@click.command("show")
@click.argument("name", metavar="[REVISION|REQUEST]", shell_complete=revision_names, default="head")
@common
def command(out: Output, store: str | None, name: str) -> None:
    """Show one revision and its requests, or one request and its steps.

    The revision is head unless named. A request is named by its id, or the start of it, as `cedit
    list` and `cedit find` print it. Each is shown with its outcome and the reason.

    \b
    Example:
      cedit show head
      cedit show head~3 --json
      cedit show 3f0a61c2
    """
    from store import Store

    with Store.open(find_store(store)) as opened:
        identity = None if _is_revision(opened, name) else _request(opened, name)
        if identity is not None:
            from continual.history.corrections import past

            record = past(opened, identity)
            out.result(record, *_past(record))
            return
        from continual.history.inspection import details

        record = details(opened, opened.revision(name))
    out.result(record, *_text(record))


def _is_revision(store: Store, name: str) -> bool:
    from store import UnknownRevision

    try:
        store.revision(name)
    except UnknownRevision:
        return False
    return True


def _request(store: Store, name: str) -> str | None:
    """Return the id of the request that begins so; None if there is none."""
    from continual.history.corrections import identified

    return identified(store, name)


def _past(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a correction, and of the steps that it was part of."""
    yield one_line(f"{record['prompt']} → {record['target_new']}")
    yield f"id           {record['id']}"
    for name in ("subject", "relation", "target_old", "case"):
        if record.get(name):
            yield one_line(f"{name:<11}  {record[name]}")
    yield f"in force     {'yes' if record['in_force'] else 'no'}"
    for step in record["steps"]:
        details = ", ".join(f"{name} {step[name]}" for name in _TOLD if step.get(name))
        place = f"@{step['seq']} {short(step['revision'])}  {day(step['measured_at'])}"
        yield one_line(f"{place}  {step['outcome']}{': ' if details else ''}{details}")


def _text(record: Mapping[str, Any]) -> Iterator[str]:
    tags = "".join(f"  [{tag}]" for tag in record["tags"])
    yield f"@{record['seq']} {record['revision']}{tags}"
    yield f"operation    {record['operation']}"
    if record["parent"]:
        yield f"parent       {short(record['parent'])}"
    if record["target"]:
        yield f"target       {short(record['target'])}"
    if record["erased"]:
        yield one_line(f"erased       {record['erased']}")
    if record["given_back"]:
        yield one_line(f"given back   {record['given_back']}")
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
        prompt, earlier_answer, present_answer = (
            one_line(change[name]) for name in ("prompt", "before", "after")
        )
        yield f"  ({change['role']})  {prompt} → {earlier_answer} | now {present_answer}"


def _outcome(outcome: Mapping[str, Any]) -> Iterator[str]:
    yield f"{outcome['outcome']:<11}  {one_line(outcome['prompt'])}"
    yield f"             → {one_line(outcome['target_new'])}  ({outcome['id']})"
    if outcome.get("forms"):
        yield f"             asked in these forms: {', '.join(outcome['forms'])}"
    if extras := _beside(outcome):
        yield f"             beside it: {one_line(extras)}"
    details = ", ".join(f"{name} {outcome[name]}" for name in _TOLD if outcome.get(name))
    if details:
        yield f"             {one_line(details)}"
    if "chosen_for" in outcome:
        yield f"             chosen for it: {one_line(outcome['chosen_for'])}"
    if "answered_by" in outcome:
        yield f"             right before its edit, by that of {short(outcome['answered_by'])}"
    for editor, reason in outcome.get("passed_by", {}).items():
        yield f"             not by {editor}: {one_line(reason)}"
    for identity in outcome.get("supersedes", ()):
        yield f"             supersedes {short(identity)}"


def _beside(outcome: Mapping[str, Any]) -> str:
    """Return the source's own fields of a correction: its name for it, and foreign keys."""
    pairs = {"case": outcome.get("case"), **outcome.get("extra", {})}
    return ", ".join(f"{key} {value}" for key, value in pairs.items() if value is not None)
