"""`cedit demo`: corrects the embedded model, measures it and rolls it back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
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
PROMPT_SHOWN = 48  # characters of an example's prompt that fit beside its answers

_ABOUT_MISTAKES = (
    "{} of wrong answers of the embedded model, in a new store.",
    "It was never taught these facts, and makes the answers up. Each correction has",
    "to turn a wrong answer into the right one, and to change nothing else.",
    "",
)
_ABOUT_CORRECTIONS = (
    "",
    "{} more, which say what is not so (that Dali was from Chile): there",
    "the model knows what is. Each has to change an answer, and nothing else.",
    "",
)


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

    Correct wrong answers of it, measure after every step, and roll back. With a larger --count than
    it has wrong answers, the other corrections say what is not so.

    \b
    Example:
      cedit demo
      cedit demo --count 1000 --keep demo-store
    """
    from continual.embedded import ATLAS
    from continual.new_store import NewStore, init

    path = keep or store
    with _folder(path) as folder, init(folder, NewStore()) as session:
        applied = _apply(session, out, ATLAS.mistakes, count, _ABOUT_MISTAKES)
        if count > applied:
            _apply(session, out, ATLAS.corrections, count - applied, _ABOUT_CORRECTIONS)
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


def _apply(session: Session, out: Output, path: Path, count: int, about: Sequence[str]) -> int:
    """Say what a stream is about, apply so many of its corrections or all that it has, and return
    their number."""
    from continual.streams import open_stream

    stream = open_stream(str(path))
    count = min(count, stream.count() or 0)
    out.text(*(line.format(counted(count, "correction")) for line in about))
    tally = apply_stream(session, stream, session.settings(), out, limit=count)
    summary = tally.summary(session.store)
    out.result(summary, "", *summary_lines(summary))
    if summary["failed"]:
        out.text("", "Not applied, as no edit did it without changing too much else:")
        out.text(*(f"  {r.prompt} → {r.target_new}" for r in session.failed))
    return count


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
    """Return EXAMPLES corrections in force with short prompts, spread evenly from the first to the
    last."""
    requests = [r.request for r in session.run_state.retention.requests.values() if r.applied]
    brief = [r for r in requests if max(map(len, _wordings(r))) <= PROMPT_SHOWN]
    requests = brief or requests
    last_place = len(requests) - 1
    places = sorted({round(last_place * n / (EXAMPLES - 1)) for n in range(EXAMPLES)})
    return [requests[place] for place in places] if requests else []


def _wordings(request: Request) -> list[str]:
    """Return a correction's own prompt, and the shortest one that the edit has not seen."""
    unseen = sorted(map(str, request.held_out_rephrases), key=len)
    return [str(request.prompt), *unseen[:1]]


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
        "Rolled back to base. The fingerprints of all weights:",
        f"  base       {base.fingerprint}",
        f"  the model  {session.edited.fingerprint}",
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
