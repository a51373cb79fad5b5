"""`cedit quarantine`: shows the records that could not be read, with the reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from cli.options import common, find_store
from cli.output import Output, counted, one_line

RAW_CHARACTERS_MAX = 160  # of a record, where people read it


@click.command("quarantine")
@click.option("-n", "count", type=click.IntRange(1), help="The latest N alone.")
@common
def command(out: Output, store: str | None, count: int | None) -> None:
    """Show the records that could not be read, and why.

    They lie in the store's quarantine.jsonl, the oldest first. Once they can be read, by other
    --keys or limits or an installed reader, `cedit apply STREAM --retry quarantined` applies them.
    With --json there is a line for each record:
    {"type":"quarantined","stream","line","reason","raw"}.

    \b
    Example:
      cedit quarantine
      cedit quarantine -n 3
    """
    from store import Store

    with Store.open(find_store(store)) as opened:
        records = list(opened.quarantined())
    selection = records if count is None else records[-count:]
    for record in selection:
        fields = {key: record.get(key) for key in ("stream", "line", "reason", "raw", "raw_base64")}
        entry = {key: value for key, value in fields.items() if value is not None}
        out.result({"type": "quarantined", **entry}, *_text(entry))
    out.text(f"{counted(len(records), 'record')} in quarantine")


def _text(record: Mapping[str, Any]) -> Iterator[str]:
    raw = str(record.get("raw", record.get("raw_base64", "")))
    if len(raw) > RAW_CHARACTERS_MAX:
        raw = raw[:RAW_CHARACTERS_MAX] + "…"
    yield one_line(f"{record.get('stream')}, line {record.get('line')}: {record.get('reason')}")
    yield one_line(f"    {raw}")
