"""`cedit apply`: corrections from a stream, each step durable before the next one begins."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from cli.interruption import stopping
from cli.options import common, editor_lines, editor_names, find_store
from cli.output import WATCHED, Output, counted, rates, short
from cli.watching import watching

if TYPE_CHECKING:
    from continual.history.reports import Tally
    from continual.session import Session
    from continual.step.pipeline import Settings
    from continual.streams import Stream

PARTLY_DONE, INTERRUPTED = 3, 130


class _Apply(click.Command):
    """The command, with the editors under its options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, and a line for each editor."""
        from continual.choices import DEFAULT_CHAIN

        super().format_options(ctx, formatter)
        with formatter.section(f"Editors (default: {','.join(DEFAULT_CHAIN)})"):
            formatter.write_dl(list(editor_lines().items()))


@click.command("apply", cls=_Apply)
@click.argument("source", metavar="STREAM|-")
@click.option(
    "--editor",
    metavar="E[,E2]",
    shell_complete=editor_names,
    help="The editors to try, in turn: of those below.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Requests per step (default: 1).")
@click.option("--seed", type=int, help="Of every random choice (default: the store's).")
@click.option(
    "--recheck",
    metavar="HOW",
    help="How earlier edits are measured again: exact (the default), full or every=N.",
)
@click.option("--repair", is_flag=True, help="Edit again what later edits have broken.")
@click.option("--strict", is_flag=True, help="Stop at a record that cannot be read.")
@click.option("--force", is_flag=True, help="Edit also what the model answers rightly.")
@click.option("--follow", is_flag=True, help="Wait at the end of the file for more.")
@click.option("--limit", type=click.IntRange(1), help="Stop after this many steps.")
@common
def command(
    out: Output,
    store: str | None,
    source: str,
    follow: bool,
    limit: int | None,
    **chosen: Any,
) -> int:
    """Apply a stream of corrections.

    The stream is JSON Lines or a JSON array, from a file or from - (standard input). A run that
    ended early goes on where it was when the same command is given again. What cannot be read
    goes to the store's quarantine.jsonl; exit code 3 says that something failed or was
    quarantined.

    A correction has a prompt that is a text, or messages, a list of {"role", "content"}, for a
    model that chats; "forms": ["plain", "chat"] makes it hold for the prompt as it is and as a
    user's turn. Prompts and targets are taken to the letter.

    \b
    Example:
      cedit apply corrections.jsonl
      cedit apply corrections.jsonl --editor auto --batch-size 50 --repair
      tail -f news.jsonl | cedit apply - --editor tpatcher --json
    """
    from continual.history.warnings import store_warnings
    from continual.session import open_session
    from continual.streams import open_stream

    stop = threading.Event()
    stream = open_stream(source, follow=follow, stop=stop)
    with open_session(find_store(store)) as session:
        out.warn([*session.notes, *store_warnings(session.store)])
        settings = _settings(session, chosen)
        with stopping(stop, reads_input=source == "-"):
            tally = apply_stream(session, stream, settings, out, limit)
        summary = tally.summary(session.store)
    out.result(summary, *summary_lines(summary), *_advice(summary, stop.is_set()))
    if stop.is_set():
        return INTERRUPTED
    return PARTLY_DONE if tally.is_partial else 0


def apply_stream(
    session: Session, stream: Stream, settings: Settings, out: Output, limit: int | None
) -> Tally:
    """Apply a stream to an open store, with every step shown."""
    from continual.history.reports import Tally, step_record

    tally = Tally()
    state = session.store.stream(stream.name) or {"position": 0}
    steps = session.steps(stream, settings, on_change=out.note)
    with watching(out, state["position"], stream.count()) as watch:
        for step in islice(steps, limit):
            record = step_record(step)
            tally.take(record)
            watch.take(record)
    session.settle()
    return tally


def _settings(session: Session, chosen: Mapping[str, Any]) -> Settings:
    """The store's settings with what was chosen on the command line."""
    from continual.editors.chains import chain_of
    from continual.step.pipeline import Recheck

    changes = {name: value for name, value in chosen.items() if value is not None}
    if "editor" in changes:
        changes["chain"] = chain_of(changes.pop("editor"), session.task.name)
    if "recheck" in changes:
        changes["recheck"] = Recheck.parse(changes["recheck"])
    return session.settings(**changes)


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """The end of a run, as it reads."""
    names = ("applied", "skipped", "superseded", "failed", "quarantined")
    counts = ", ".join(f"{summary[name]} {name}" for name in names)
    return [
        f"{summary['read']} read: {counts} in {summary['seconds']:.1f} s",
        rates(summary, "SR", "GR", "ER", "TrainR", "TestR", "Locality"),
        rates(summary, *WATCHED),
        f"head {short(summary['head'])}  fingerprint {short(summary['fingerprint'])}",
    ]


def _advice(summary: Mapping[str, Any], is_stopped: bool) -> list[str]:
    """What to do next."""
    lines: list[str] = []
    if is_stopped:
        done = counted(summary["steps"], "step")
        lines.append(f"Stopped after {done}, all kept. To go on, give the same command again.")
    elif not summary["steps"]:
        lines.append("Nothing new: this history holds all of the stream already.")
    if summary["failed"]:
        lines.append("See why requests failed: cedit show REVISION (cedit log lists them)")
    if summary["quarantined"]:
        lines.append("See what was quarantined: quarantine.jsonl in the store")
    return lines
