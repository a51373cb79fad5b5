"""`cedit ask`: what the edited model answers."""

from __future__ import annotations

import click

from cli.options import common, find_store, revision_names
from cli.output import Output, one_line


@click.command("ask")
@click.argument("prompt")
@click.option(
    "--at",
    metavar="REVISION",
    shell_complete=revision_names,
    default="head",
    help="The revision (default: head).",
)
@common
def command(out: Output, store: str | None, prompt: str, at: str) -> None:
    """Ask the edited model, at any revision.

    \b
    Example:
      cedit ask "The capital of Australia is"
      cedit ask "The capital of Australia is" --at base
    """
    from continual.session import open_session

    with open_session(find_store(store), writable=False, at=at) as session:
        answer = session.ask(prompt)
        revision = session.store.revision(at)
    record = {
        "type": "answer",
        "prompt": prompt,
        "answer": answer,
        "revision": revision.id,
        "seq": revision.seq,
    }
    out.result(record, one_line(answer))
