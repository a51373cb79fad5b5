"""`cedit watch`: gives a store the general text that edits leave alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import common, find_store
from cli.output import Output, counted, short, size
from cli.watching import writing

if TYPE_CHECKING:
    from continual.session import Session

File = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("watch")
@click.option(
    "--text",
    type=File,
    multiple=True,
    help="A file of text: JSON Lines with a text, or paragraphs. May be repeated.",
)
@common
def command(out: Output, store: str | None, text: tuple[Path, ...]) -> None:
    """Replace a store's general text.

    Half of the text is memory: edits stay silent on it. The other half is held out, and Watch is
    the share of its positions that the edited model continues as the base does. A new store has
    text that the base wrote itself; so does an older one from its next edit on. Without --text
    the base writes it anew.

    \b
    Example:
      cedit watch --text articles.jsonl
      cedit watch --json
    """
    from continual.session import open_session

    with open_session(find_store(store)) as session:
        began = time.perf_counter()
        with writing(out) as on_progress:
            revision = session.watch(text, on_progress)
        record = watch_record(session, time.perf_counter() - began)
        record |= {"revision": revision.id if revision else None}
    out.result(record, watch_line(record))


def watch_record(session: Session, seconds: float) -> dict[str, Any]:
    """Return the JSON record of a session's general text: its counts, seconds and bytes."""
    general = session.run_state.general
    return {
        "type": "watch",
        "source": general.text.source,
        "texts": len(general.text.passages),
        "memory_rows": general.memory_rows,
        "held_out_rows": sum(passage.rows for passage in general.text.held_out),
        "seconds": round(seconds, 3),
        "bytes": general.size(),
    }


def watch_line(record: dict[str, Any]) -> str:
    """Return the sentence that describes a record of general text."""
    if not record["texts"]:
        return "No general text: Watch will not be measured."
    who = "written by the base" if record["source"] == "base" else f"from {short(record['source'])}"
    return (
        f"{counted(record['texts'], 'general text')} {who}: {record['memory_rows']:,} positions "
        f"that edits leave alone, {record['held_out_rows']:,} held out, in "
        f"{record['seconds']:.0f} s and {size(record['bytes'])}."
    )
