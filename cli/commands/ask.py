"""`cedit ask`: asks the edited model."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import common, find_store, require_revision, revision_names
from cli.output import Output, columns, one_line, short

if TYPE_CHECKING:
    from continual.memory.routing import Route
    from continual.prompts import Prompt
    from continual.session import Session


@click.command("ask")
@click.argument("texts", metavar="[PROMPT]...", nargs=-1)
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
    "--picture",
    "pictures",
    metavar="FILE",
    multiple=True,
    help="A picture that each PROMPT shows (repeatable), where it says <image>, or in front.",
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
@click.option(
    "--compare",
    metavar="REVISION",
    shell_complete=revision_names,
    help="Answer at this revision too, beside the other.",
)
@common
def command(
    out: Output,
    store: str | None,
    texts: tuple[str, ...],
    messages: str | None,
    source: str | None,
    pictures: tuple[str, ...],
    tokens_max: int,
    at: str,
    compare: str | None,
) -> None:
    """Ask the edited model at a revision, or at two side by side.

    If an answer comes from an edit in memory (serac, ike), the edit and its score are printed on
    standard error; with --json they are the answer's "memory", else null:
    {"request","prompt","target","method","score"}. With --file the model is loaded once, and
    answers the prompts of the file in order.

    \b
    Example:
      cedit ask "The capital of Australia is"
      cedit ask "The capital of Australia is" --at head~1
      cedit ask "The capital of Australia is" "The capital of Peru is" --compare base
      cedit ask --file prompts.txt --json
      cedit ask --messages '[{"role": "user", "content": "What is the capital of Australia?"}]'
      cedit ask "Question: What is this? Short answer:" --picture photo.jpg
    """
    prompts = _prompts(texts, messages, source)
    path = find_store(store)
    for name in filter(None, (at, compare)):
        require_revision(path, name)
    from continual.session import open_session

    with open_session(path, writable=False, at=at) as session:
        answers = []
        prompts = [session.shown(prompt, pictures) for prompt in prompts]
        for prompt in prompts:
            answers.append(_record(session, prompt, tokens_max, at))
            if compare is None:
                _show(out, answers[-1], is_one_of_many=len(prompts) > 1)
        if compare is not None:
            _compare(session, prompts, answers, tokens_max, compare)
            _show_compared(out, answers, (compare, at))


def _record(session: Session, prompt: Prompt, tokens_max: int, at: str) -> dict[str, Any]:
    """Ask the model where the session stands, and return the JSON record of its answer."""
    from continual.picture_marks import digests_in, shown
    from continual.prompts import Chat

    answer = session.answer(prompt, tokens_max)
    digests = digests_in(str(prompt))
    revision = session.store.revision(at)
    return {
        "type": "answer",
        "prompt": shown(str(prompt)),
        **({"pictures": list(digests)} if digests else {}),
        **({"messages": prompt.to_json()} if isinstance(prompt, Chat) else {}),
        "answer": answer.text,
        "revision": revision.id,
        "seq": revision.seq,
        "memory": None if answer.route is None else _told(answer.route),
    }


def _compare(
    session: Session,
    prompts: Sequence[Prompt],
    answers: Sequence[dict[str, Any]],
    tokens_max: int,
    at: str,
) -> None:
    """Put the answers at another revision beside these."""
    session.stand_at(at)
    for prompt, record in zip(prompts, answers, strict=True):
        record["compared"] = _record(session, prompt, tokens_max, at)


def _show_compared(
    out: Output, answers: Sequence[Mapping[str, Any]], revisions: tuple[str, str]
) -> None:
    """Print a table of prompts with their answers at two revisions."""
    for record in answers:
        out.record(record)
    rows = [(a["prompt"], a["compared"]["answer"], a["answer"]) for a in answers]
    out.text(columns(("prompt", *revisions), rows, shrinks="prompt"))


def _show(out: Output, record: Mapping[str, Any], *, is_one_of_many: bool) -> None:
    """Print an answer, behind its prompt if it is one of many, and the record in memory that it
    comes from."""
    lead = f"{record['prompt']} → " if is_one_of_many else ""
    out.result(record, one_line(lead + record["answer"]))
    if (memory := record["memory"]) is not None and not out.as_json:
        out.note(
            f"from memory: {one_line(memory['prompt'])} → {one_line(memory['target'])} "
            f"({memory['method']}, request {short(memory['request'])}, score {memory['score']:.3f})"
        )


def _prompts(texts: Sequence[str], messages: str | None, source: str | None) -> list[Prompt]:
    """Return the prompts to ask. Raises UsageError for none, for prompts of two kinds, and for a
    file that cannot be read."""
    if [bool(texts), messages is not None, source is not None].count(True) != 1:
        raise click.UsageError("Ask one thing: PROMPTs, a chat with --messages, or a --file.")
    if messages is not None:
        return [_chat(messages)]
    if source is None:
        return [*texts]
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        lines = data.decode("utf-8-sig").split("\n")
        return [
            _of_line(line.removesuffix("\r"), n) for n, line in enumerate(lines, 1) if line.strip()
        ]
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--file {source} cannot be read: {error}.") from None


def _of_line(line: str, number: int) -> Prompt:
    """Return the prompt on a line: from JSON, or the line as it is. Raises ValueError."""
    if not line.startswith(("{", "[", '"')):
        return line
    from continual.prompts import read_prompt

    try:
        value = json.loads(line)
        if isinstance(value, dict) and "prompt" in value:
            value = value["prompt"]
        elif isinstance(value, dict):
            value = {"messages": value["messages"]}
        return read_prompt(value)
    except (ValueError, KeyError) as error:
        raise ValueError(f"line {number} has no prompt: {error}") from None


def _chat(messages: str) -> Prompt:
    """Read a chat from JSON, or from a file with JSON. Raises UsageError."""
    from continual.prompts import Chat

    is_json = messages.lstrip().startswith(("[", "{"))
    try:
        value = json.loads(messages if is_json else Path(messages).read_text(encoding="utf-8"))
        return Chat.from_json(value["messages"] if isinstance(value, dict) else value)
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
