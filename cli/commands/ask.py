"""`cedit ask`: what the edited model answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import common, find_store, revision_names
from cli.output import Output, one_line, short

if TYPE_CHECKING:
    from continual.memory.routing import Route
    from continual.prompts import Prompt
    from continual.session import Answer
    from store import Revision


@click.command("ask")
@click.argument("prompt", required=False)
@click.option(
    "--messages",
    metavar="FILE|JSON",
    help='A chat in the place of PROMPT: a list of {"role", "content"}, or a file with one.',
)
@click.option(
    "--file",
    "source",
    metavar="FILE|-",
    help="Many prompts: a text on each line, or JSON with a prompt or messages.",
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
    source: str | None,
    tokens_max: int,
    at: str,
) -> None:
    """Ask the edited model, at any revision.

    Where the answer is read from an edit in memory (serac, ike), the edit and its score are said on
    standard error; with --json they are the answer's "memory", which is null where there is none:
    {"request","prompt","target","method","score"}. With --file the model is loaded once, and each
    prompt of the file answered in its order.

    \b
    Example:
      cedit ask "The capital of Australia is"
      cedit ask "The capital of Australia is" --at base
      cedit ask --file prompts.txt --json
      cedit ask --messages '[{"role": "user", "content": "What is the capital of Australia?"}]'
    """
    prompts = _prompts(prompt, messages, source)
    from continual.session import open_session

    with open_session(find_store(store), writable=False, at=at) as session:
        revision = session.store.revision(at)
        for asked in prompts:
            answer = session.answer(asked, tokens_max)
            _show(out, asked, answer, revision, is_one_of_many=source is not None)


def _show(
    out: Output, asked: Prompt, answer: Answer, revision: Revision, *, is_one_of_many: bool
) -> None:
    """An answer, and the record that it is from; of many, each behind its prompt."""
    from continual.prompts import Chat

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
    before = f"{asked} → " if is_one_of_many else ""
    out.result(record, one_line(before + answer.text))
    if memory is not None and not out.as_json:
        out.note(
            f"from memory: {one_line(memory['prompt'])} → {one_line(memory['target'])} "
            f"({memory['method']}, request {short(memory['request'])}, score {memory['score']:.3f})"
        )


def _prompts(prompt: str | None, messages: str | None, source: str | None) -> list[Prompt]:
    """All that is asked."""
    if source is None:
        return [_asked(prompt, messages)]
    if prompt is not None or messages is not None:
        raise click.UsageError("Ask by a PROMPT, by --messages, or by --file.")
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        lines = data.decode("utf-8-sig").split("\n")
        return [
            _of_line(line.removesuffix("\r"), n) for n, line in enumerate(lines, 1) if line.strip()
        ]
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--file {source} cannot be read: {error}.") from None


def _of_line(line: str, number: int) -> Prompt:
    """The prompt on a line: JSON with one, or the line as it is. Raises ValueError."""
    if not line.startswith(("{", "[", '"')):
        return line
    from continual.prompts import read_prompt

    try:
        told = json.loads(line)
        if isinstance(told, dict) and "prompt" in told:
            told = told["prompt"]
        elif isinstance(told, dict):
            told = {"messages": told["messages"]}
        return read_prompt(told)
    except (ValueError, KeyError) as error:
        raise ValueError(f"line {number} has no prompt: {error}") from None


def _asked(prompt: str | None, messages: str | None) -> Prompt:
    """The text or the chat that is asked."""
    if (prompt is None) == (messages is None):
        raise click.UsageError(
            "Ask one thing: a PROMPT, or a chat with --messages; or many with --file."
        )
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
