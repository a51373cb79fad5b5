"""`cedit corrections`: writes the corrections in force in a form that `apply` reads."""

from __future__ import annotations

import sys

import click

from cli.options import common, find_store, revision_names
from cli.output import Output


@click.command("corrections")
@click.option("--jsonl", "form", flag_value="jsonl", default=True, help="JSON Lines (the default).")
@click.option("--csv", "form", flag_value="csv", help="A table of comma-separated values.")
@click.option("--at", default="head", help="A revision.", shell_complete=revision_names)
@common
def command(out: Output, store: str | None, form: str, at: str) -> None:
    """Write the corrections in force, in a form that `cedit apply` reads.

    Each has its prompt or messages, forms, target, subject, relation, rephrases, locality and
    portability probes, and the source's other fields: applied to another store it is the same
    request, with the same id. They come in the order of their edits, on standard output. A cell of
    the table that holds a list or a chat is JSON.

    --json prints the same lines as --jsonl.

    \b
    Example:
      cedit corrections > corrections.jsonl
      cedit corrections --csv --at head~10 > corrections.csv
      cedit apply corrections.jsonl --store elsewhere/.cedit
    """
    from continual.history.written import csv_text, json_lines, requests_in_force
    from store import Store

    with Store.open(find_store(store)) as opened:
        requests = requests_in_force(opened, opened.revision(at))
    is_table = form == "csv" and not out.as_json
    for text in csv_text(requests) if is_table else json_lines(requests):
        sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.flush()
