"""`cedit demo`: corrects an embedded model, measures it and rolls it back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.commands.apply import apply_stream, summary_lines
from cli.options import common
from cli.output import Output, columns, counted

if TYPE_CHECKING:
    from continual.requests import Request
    from continual.session import Session

COUNT, SEEING_COUNT = 200, 60  # corrections, of texts and with pictures
SEEING_PROBES = 100  # of each set, with pictures
CAPTIONED = 3  # one correction in so many is of a caption
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

_ABOUT_PICTURES = (
    "{} of answers about pictures, in a new store. The embedded model that",
    "sees never met half of the emblems, and is told otherwise about the others.",
    "",
)
_ABOUT_CAPTIONS = (
    "",
    "{} of captions: each has to name an owner in the place of shapes.",
    "",
)


@click.command("demo")
@click.option("--keep", type=click.Path(), help="Keep the store in this folder.")
@click.option(
    "--count",
    type=click.IntRange(1),
    help=f"How many corrections to apply (default: {COUNT}; {SEEING_COUNT} with pictures).",
)
@click.option(
    "--task",
    type=click.Choice(["causal", "multimodal"]),
    default="causal",
    show_default=True,
    help="The embedded model to correct: of texts, or one that sees pictures.",
)
@common
def command(out: Output, store: str | None, keep: str | None, count: int | None, task: str) -> None:
    """Show it all on the embedded model.

    Correct wrong answers of it, measure after every step, and roll back. With a larger --count than
    it has wrong answers, the other corrections say what is not so. With --task multimodal the model
    sees: answers and captions are corrected, and each correction is asked in other words, on other
    renderings of its picture, and beside itself.

    \b
    Example:
      cedit demo
      cedit demo --task multimodal
      cedit demo --count 1000 --keep demo-store
    """
    from continual.embedded import ATLAS
    from continual.new_store import NewStore, init

    path = keep or store
    if task == "multimodal":
        _show_seeing(out, path, count or SEEING_COUNT)
        return
    count = count or COUNT
    with _folder(path) as folder, init(folder, NewStore()) as session:
        applied = _apply(session, out, ATLAS.mistakes, count, _ABOUT_MISTAKES)
        if count > applied:
            _apply(session, out, ATLAS.corrections, count - applied, _ABOUT_CORRECTIONS)
        _compare(session, out)
        _go_back(session, out)
    out.text("", *_next(path))


def _show_seeing(out: Output, path: str | None, count: int) -> None:
    """Show it all on the embedded model that sees."""
    from continual.embedded import GALLERY
    from continual.errors import ModelError
    from continual.pictures.content import require_pillow

    require_pillow()
    if not GALLERY.is_here:
        raise ModelError(
            f"No model that sees comes with this package yet; train it with: {GALLERY.training}"
        )
    with (
        tempfile.TemporaryDirectory(prefix="cedit-gallery-") as pictures,
        _folder(path) as folder,
        _seeing_session(folder, Path(pictures), count) as session,
    ):
        _correct_seeing(session, out, Path(pictures), count)
        _compare(session, out)
        _go_back(session, out)
    ask = 'cedit ask "Question: Who owns this emblem? Answer:" --picture FILE'
    out.text("", *_next(path, ask, f"cedit init --model {GALLERY.name}"))


def _seeing_session(folder: Path, pictures: Path, count: int) -> Session:
    """Draw the gallery's streams, and make a store with its probes."""
    from continual.embedded import GALLERY
    from continual.gallery.streams import PROBES, write
    from continual.new_store import NewStore, init

    write(pictures, count=count, probes=SEEING_PROBES)
    train, test = (pictures / PROBES[name] for name in ("train", "test"))
    return init(folder, NewStore(GALLERY.name, train_probes=train, test_probes=test))


def _correct_seeing(session: Session, out: Output, pictures: Path, count: int) -> None:
    """Apply so many corrections, of captions among them, and ask around them, before and after."""
    from cli import seeing
    from continual.gallery.streams import ANSWERS, CAPTIONS

    captions = count // CAPTIONED
    parts = {ANSWERS: (count - captions, _ABOUT_PICTURES), CAPTIONS: (captions, _ABOUT_CAPTIONS)}
    requests = [r for name, (n, _) in parts.items() for r in _first(session, pictures / name, n)]
    asked = seeing.questions(session, requests)
    before = seeing.answers(session, asked)
    for name, (number, about) in parts.items():
        if number:
            _apply(session, out, pictures / name, number, about)
    shares = seeing.shares(asked, before, seeing.answers(session, asked))
    for group, (number, share) in shares.items():
        out.record({"type": "group", "group": group, "questions": number, "share": share})
    rows = [(group, str(number), f"{share:.3f}") for group, (number, share) in shares.items()]
    title = ("beside the corrections", "asked", "as it should be")
    out.text("", columns(title, rows, shrinks="beside the corrections"))


def _first(session: Session, path: Path, count: int) -> list[Request]:
    """Return the first requests of a stream, with their pictures."""
    from continual.streams import open_stream

    items = session.seeing(open_stream(str(path)))
    return list(islice((request for item in items for request in item.requests), count))


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
    from continual.picture_marks import shown

    prompts = [prompt for request in _examples(session) for prompt in _wordings(request)]
    answers: dict[str, list[str]] = {}
    for revision in ("base", "head"):
        session.stand_at(revision)
        answers[revision] = [session.ask(prompt) for prompt in prompts]
    prompts = [shown(prompt) for prompt in prompts]
    rows = list(zip(prompts, answers["base"], answers["head"], strict=True))
    for prompt, base_answer, head_answer in rows:
        out.record(
            {"type": "example", "prompt": prompt, "before": base_answer, "after": head_answer}
        )
    out.text("", columns(("prompt", "before", "after"), rows, shrinks="prompt"))


def _examples(session: Session) -> list[Request]:
    """Return EXAMPLES corrections in force with short prompts, spread evenly from the first to the
    last."""
    from continual.picture_marks import shown

    requests = [r.request for r in session.run_state.retention.requests.values() if r.applied]
    brief = [r for r in requests if max(len(shown(w)) for w in _wordings(r)) <= PROMPT_SHOWN]
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


def _next(
    kept: str | None, ask: str = 'cedit ask "The capital of Australia is"', init: str = "cedit init"
) -> list[str]:
    if kept is None:
        return [
            "The store is gone again; to have your own:",
            f"  {init}",
            "  cedit apply corrections.jsonl",
            f"  {ask}",
        ]
    return [
        f"The store is in {kept}; nothing in it was erased:",
        f"  cedit log --all --store {kept} --limit 5",
        f"  cedit rollback @1 --store {kept}",
        f"  cedit verify --store {kept}",
    ]
