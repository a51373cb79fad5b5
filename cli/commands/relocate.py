"""`cedit relocate`: names a new place for the base model of a store."""

from __future__ import annotations

import click

from cli.options import common, find_store
from cli.output import Output


@click.command("relocate")
@click.argument("model", metavar="DIR", type=click.Path())
@common
def command(out: Output, store: str | None, model: str) -> None:
    """Name the base model's new place.

    The files there are compared with the files that the history was made on: another model is
    refused (exit code 21). The history stays as it is. With --json: {"type":"relocated","model"}.

    \b
    Example:
      cedit relocate /models/gpt2
    """
    from continual.open_store import relocate

    place = relocate(find_store(store), model)
    out.result(
        {"type": "relocated", "model": place}, f"The base model is in {place}: the same files."
    )
