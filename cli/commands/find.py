"""`cedit find`: finds corrections by a text in them."""

from __future__ import annotations

import click

from cli.corrections import show_corrections
from cli.options import common, find_store
from cli.output import Output


@click.command("find")
@click.argument("text")
@common
def command(out: Output, store: str | None, text: str) -> None:
    """Find corrections by a text in their prompt, target, subject, relation, case or id.

    Upper and lower case count as the same. Corrections that were rolled back, reverted or
    superseded are found as well, and marked. `cedit show` and `cedit revert` take the printed id.

    With --json there is a line for each, in the form of `cedit list`.

    \b
    Example:
      cedit find Australia
    """
    from continual.history.corrections import ever_asked, matching
    from store import Store

    with Store.open(find_store(store)) as opened:
        corrections = matching(ever_asked(opened), text)
    show_corrections(out, corrections, nothing=f"No correction has {text!r}.")
