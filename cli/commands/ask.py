"""`cedit ask`: what the edited model answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.options import common, find_store, revision_names
from cli.output import Output, one_line, short

if TYPE_CHECKING:
    from continual.memory.routing import Route


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

    Where the answer is read from an edit in memory (serac, ike), the edit and its score are said on
    standard error; with --json they are the answer's "memory", which is null where there is none:
    {"request","prompt","target","method","score"}.

    \b
    Example:
      cedit ask "The capital of Australia is"
      cedit ask "The capital of Australia is" --at base
    """
    from continual.session import open_session

    with open_session(find_store(store), writable=False, at=at) as session:
        answer = session.answer(prompt)
        revision = session.store.revision(at)
        memory = None if answer.route is None else _told(answer.route)
    record = {
        "type": "answer",
        "prompt": prompt,
        "answer": answer.text,
        "revision": revision.id,
        "seq": revision.seq,
        "memory": memory,
    }
    out.result(record, one_line(answer.text))
    if memory is not None and not out.as_json:
        out.note(
            f"from memory: {one_line(memory['prompt'])} → {one_line(memory['target'])} "
            f"({memory['method']}, request {short(memory['request'])}, score {memory['score']:.3f})"
        )


def _told(route: Route) -> dict[str, Any]:
    return {
        "request": route.record.id,
        "prompt": route.record.prompt,
        "target": route.record.target,
        "method": route.method,
        "score": route.score,
    }
