"""`cedit ask`: what the edited model answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import common, find_store, revision_names
from cli.output import Output, one_line, short

if TYPE_CHECKING:
    from continual.memory.routing import Route
    from continual.prompts import Prompt


@click.command("ask")
@click.argument("prompt", required=False)
@click.option(
    "--messages",
    metavar="FILE|JSON",
    help='A chat in the place of PROMPT: a list of {"role", "content"}, or a file with one.',
)
@click.option(
    "--tokens",
    "tokens_max",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="How long an answer may be.",
)
@click.option(
    "--at",
    metavar="REVISION",
    shell_complete=revision_names,
    default="head",
    help="The revision (default: head).",
)
@common
def command(
    out: Output,
    store: str | None,
    prompt: str | None,
    messages: str | None,
    tokens_max: int,
    at: str,
) -> None:
    """Ask the edited model, at any revision.

    Where the answer is read from an edit in memory (serac, ike), the edit and its score are said on
    standard error; with --json they are the answer's "memory", which is null where there is none:
    {"request","prompt","target","method","score"}.

    \b
    Example:
      cedit ask "The capital of Australia is"
      cedit ask "The capital of Australia is" --at base
      cedit ask --messages '[{"role": "user", "content": "What is the capital of Australia?"}]'
    """
    from continual.prompts import Chat
    from continual.session import open_session

    asked = _asked(prompt, messages)
    with open_session(find_store(store), writable=False, at=at) as session:
        answer = session.answer(asked, tokens_max)
        revision = session.store.revision(at)
        memory = None if answer.route is None else _told(answer.route)
    record = {
        "type": "answer",
        "prompt": str(asked),
        **({"messages": asked.to_json()} if isinstance(asked, Chat) else {}),
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


def _asked(prompt: str | None, messages: str | None) -> Prompt:
    """The text or the chat that is asked."""
    if (prompt is None) == (messages is None):
        raise click.UsageError("Ask one thing: a PROMPT, or a chat with --messages.")
    if messages is None:
        return str(prompt)
    from continual.prompts import Chat

    is_json = messages.lstrip().startswith(("[", "{"))
    try:
        told = json.loads(messages if is_json else Path(messages).read_text(encoding="utf-8"))
        return Chat.from_json(told["messages"] if isinstance(told, dict) else told)
    except (OSError, ValueError, KeyError) as error:
        place = "" if is_json else f" {messages}"
        raise click.UsageError(f"--messages{place} cannot be read: {error}.") from None


def _told(route: Route) -> dict[str, Any]:
    return {
        "request": route.record.id,
        "prompt": route.record.prompt,
        "target": route.record.target,
        "method": route.method,
        "score": route.score,
    }
