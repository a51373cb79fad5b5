"""`cedit diff`: what lies between two revisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from cli.options import common, find_store, revision_names
from cli.output import Output, one_line, rates, short, size

_PLACE = {"from": "A", "to": "B"}


@click.command("diff")
@click.argument("a", shell_complete=revision_names)
@click.argument("b", shell_complete=revision_names, default="head")
@common
def command(out: Output, store: str | None, a: str, b: str) -> None:
    """Show what lies between two revisions.

    What is new at B (head unless named): requests, patches, and the probes that turned.

    \b
    Example:
      cedit diff head~10 head
      cedit diff base head --json
    """
    from continual.inspection import difference
    from store import Store

    with Store.open(find_store(store)) as opened:
        record = difference(opened, opened.revision(a), opened.revision(b))
    out.result(record, *_text(record))


def _text(record: Mapping[str, Any]) -> Iterator[str]:
    for place, letter in _PLACE.items():
        measured = rates(record["rates"][place], "SR", "GR", "ER", "TrainR", "TestR")
        yield f"{letter} {short(record[place])}  {measured}"
    yield f"patches +{size(record['patch_bytes_added'])} -{size(record['patch_bytes_gone'])}"
    for sign, name in (("+", "added"), ("-", "gone")):
        for request in record[name]:
            failed = "  (failed)" if request["outcome"] == "failed" else ""
            yield one_line(f"{sign} {request['prompt']} → {request['target_new']}{failed}")
    for probe in record["turned"]:
        verb = "recovered" if probe["right"]["to"] else "broke"
        yield one_line(f"! {verb} ({probe['role']})  {probe['prompt']} → {probe['answer']}")
