"""`cedit status`: shows the store's head with its corrections and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from cli.options import common, find_store
from cli.output import WATCHED, Output, counted, rates, short


@click.command("status")
@common
def command(out: Output, store: str | None) -> None:
    """Show head, its corrections and its metrics.

    \b
    Example:
      cedit status
      cedit status --json
    """
    from continual.history.inspection import status
    from store import Store

    with Store.open(find_store(store)) as opened:
        record = status(opened)
    out.result(record, *_text(record))
    out.warn(record["warnings"])


def _text(record: Mapping[str, Any]) -> Iterator[str]:
    correction_count = counted(record["requests_active"], "correction")
    yield f"store        {record['store']}"
    yield f"model        {record['model']} ({record['task']})"
    yield f"head         {short(record['head'])} (@{record['seq']})"
    yield f"fingerprint  {short(record['fingerprint'])}"
    yield f"in force     {correction_count}, {record['requests_failed']} failed"
    yield f"metrics      {rates(record, 'SR', 'GR', 'ER', 'TrainR', 'TestR', 'Locality')}"
    yield f"             {rates(record, *WATCHED)}"
    if record["index"]:
        yield f"index        {_index_text(record['index'])}"
    for name, position in record["streams"].items():
        yield f"stream       {name}: {counted(position, 'record')} read"
    if record["quarantined"]:
        yield f"quarantine   {counted(record['quarantined'], 'record')} (cedit quarantine)"


def _index_text(index: Mapping[str, Any]) -> str:
    vectors = counted(index["vectors"], "vector")
    if index["recall"] is None:
        return f"{vectors}, each compared with an input"
    return f"{vectors}, the nearest found in {index['recall']:.1%} of the inputs tried"
