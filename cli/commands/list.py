"""`cedit list`: lists the corrections in force."""

from __future__ import annotations

import click

from cli.corrections import show_corrections
from cli.options import common, find_store, revision_names
from cli.output import Output


@click.command("list")
@click.argument("revision", shell_complete=revision_names, default="head")
@click.option("--failed", is_flag=True, help="Those that failed instead.")
@common
def command(out: Output, store: str | None, revision: str, failed: bool) -> None:
    """List the corrections in force at a revision (head unless named), the oldest first.

    With --json there is a line for each, {"type":"correction","id","prompt","target_new","outcome",
    "editor","in_force","seq","revision","measured_at"}, with the other fields of the request.

    \b
    Example:
      cedit list
      cedit list --failed
      cedit list head~10 --json
    """
    from continual.history.corrections import in_force
    from store import Store

    with Store.open(find_store(store)) as opened:
        corrections = in_force(opened, opened.revision(revision))
    show_corrections(out, [c for c in corrections if c["in_force"] is not failed])
