"""`cedit demo`: corrects the embedded model, measures it and rolls it back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.commands.apply import apply_stream, summary_lines
from cli.options import common
from cli.output import Output, columns, counted

if TYPE_CHECKING:
    from continual.requests import Request
    from continual.session import Session

COUNT = 200  # corrections
EXAMPLES = 3


@click.command("demo")
@click.option("--keep", type=click.Path(), help="Keep the store in this folder.")
@click.option(
    "--count",
    type=click.IntRange(1),
    default=COUNT,
    show_default=True,
    help="How many corrections to apply.",
)
@common
def command(out: Output, store: str | None, keep: str | None, count: int) -> None:
    """Show it all on the embedded model.

    Correct it some hundreds of times, measure after every step, and roll back.

    \b
    Example:
      cedit demo
      cedit demo --count 1000 --keep demo-store
    """
    from continual.new_store import NewStore, init

    path = keep or store
    with _folder(path) as folder, init(folder, NewStore()) as session:
        out.text(
            f"A new store, and {counted(count, 'correction')} for the embedded model.",
            "They say what is not so (that Dali was from Chile), since the model knows what is:",
            "each has to change an answer, and nothing else.",
            "",
        )
        _apply(session, out, count)
        _compare(session, out)
        _go_back(session, out)
    out.text("", *_next(path))


@contextmanager
def _folder(kept: str | None) -> Iterator[Path]:
    """Yield the folder for the demonstration's store; remove it afterwards unless `kept` names
    it."""
    if kept is not None:
        yield Path(kept)
        return
    with tempfile.TemporaryDirectory(prefix="cedit-demo-") as folder:
        yield Path(folder) / "store"


def _apply(session: Session, out: Output, count: int) -> None:
    from continual.embedded import ATLAS
    from continual.streams import open_stream

    stream = open_stream(str(ATLAS.corrections))
    tally = apply_stream(session, stream, session.settings(), out, limit=count)
    summary = tally.summary(session.store)
    out.result(summary, "", *summary_lines(summary))


def _compare(session: Session, out: Output) -> None:
    """Show the answers at base and at head to some corrections, in their own and other words."""
    prompts = [prompt for request in _examples(session) for prompt in _wordings(request)]
    answers: dict[str, list[str]] = {}
    for revision in ("base", "head"):
        session.stand_at(revision)
        answers[revision] = [session.ask(prompt) for prompt in prompts]
    rows = list(zip(prompts, answers["base"], answers["head"], strict=True))
    for prompt, base_answer, head_answer in rows:
        out.record(
            {"type": "example", "prompt": prompt, "before": base_answer, "after": head_answer}
        )
    out.text("", columns(("prompt", "before", "after"), rows, shrinks="prompt"))


def _examples(session: Session) -> list[Request]:
    """Return EXAMPLES corrections in force, spread evenly from the first to the last."""
    requests = [r.request for r in session.standing.retention.requests.values() if r.applied]
    last_place = len(requests) - 1
    places = sorted({round(last_place * n / (EXAMPLES - 1)) for n in range(EXAMPLES)})
    return [requests[place] for place in places] if requests else []


def _wordings(request: Request) -> list[str]:
    return [str(prompt) for prompt in (request.prompt, *request.held_out_rephrases[:1])]


def _go_back(session: Session, out: Output) -> None:
    head, base = session.store.head, session.store.base
    session.rollback("base")
    record: dict[str, Any] = {
        "type": "rollback",
        "from": head.id,
        "to": base.id,
        "fingerprint": session.edited.fingerprint,
        "restored": session.edited.fingerprint == base.fingerprint,
    }
    out.result(
        record,
        "",
        "Rolled back to base:",
        f"  fingerprint of base       {base.fingerprint}",
        f"  fingerprint of the model  {session.edited.fingerprint}",
        "  the same, bit for bit" if record["restored"] else "  ANOTHER: this is a bug",
    )


def _next(kept: str | None) -> list[str]:
    if kept is None:
        return [
            "The store is gone again; to have your own:",
            "  cedit init",
            "  cedit apply corrections.jsonl",
            '  cedit ask "The capital of Australia is"',
        ]
    return [
        f"The store is in {kept}; nothing in it was erased:",
        f"  cedit log --all --store {kept} --limit 5",
        f"  cedit rollback @1 --store {kept}",
        f"  cedit verify --store {kept}",
    ]
