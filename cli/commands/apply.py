"""`cedit apply`: applies a stream of corrections, each step durable before the next one begins."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from cli.interruption import stopping
from cli.options import (
    EditorChain,
    common,
    editor_lines,
    editor_settings,
    find_store,
    require_writable,
    settings_option,
    with_workers,
)
from cli.output import WATCHED, Output, counted, one_line, rates, short
from cli.watching import listening, watching

if TYPE_CHECKING:
    from continual.execution import Executor
    from continual.history.reports import RunTally
    from continual.session import Session
    from continual.step.pipeline import Step
    from continual.step.settings import ApplySettings
    from continual.streams import Stream
    from store import Store

PARTLY_DONE, INTERRUPTED = 3, 130
RETRIES = ("failed", "quarantined")
REASONS_SHOWN = 3


class _Apply(click.Command):
    """The command, with the editors under its options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and a line for each editor."""
        from continual.choices import DEFAULT_CHAIN

        super().format_options(ctx, formatter)
        with formatter.section(f"Editors (default: {','.join(DEFAULT_CHAIN)})"):
            formatter.write_dl(list(editor_lines().items()))


def _keys(_: click.Context, __: click.Parameter, told: Sequence[str]) -> dict[str, str]:
    """Read `prompt=question,target_new=answer`, given once or several times. Raises
    BadParameter."""
    pairs = [pair for text in told for pair in re.split(r",(?=\w+=)", text)]
    if bad_pairs := [pair for pair in pairs if "=" not in pair]:
        raise click.BadParameter(f"{bad_pairs[0]!r} is not like prompt=question")
    return {key: path for key, _, path in (pair.partition("=") for pair in pairs)}


class RecheckName(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """exact, full or every=N."""

    name = "how"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text as it is. Fails for any other text."""
        if not re.fullmatch(r"exact|full|every=[1-9]\d*", value):
            self.fail(f"{value!r} is not exact, full or every=N with N at least 1.", param, ctx)
        return value


@click.command("apply", cls=_Apply)
@click.argument("source", metavar="STREAM|-", required=False)
@click.option(
    "--editor",
    type=EditorChain(),
    metavar="E[,E2]",
    help="The editors to try, in turn: of those below.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Requests per step (default: 1).")
@click.option("--seed", type=int, help="Of every random choice (default: the store's).")
@click.option(
    "--recheck",
    type=RecheckName(),
    metavar="HOW",
    help="How earlier edits are measured again: exact (the default), full or every=N.",
)
@click.option("--repair", is_flag=True, help="Edit again what later edits have broken.")
@click.option("--strict", is_flag=True, help="Stop at a record that cannot be read.")
@click.option("--force", is_flag=True, help="Edit also what the model answers rightly.")
@click.option("--follow", is_flag=True, help="Wait at the end of the file for more.")
@click.option("--limit", type=click.IntRange(1), help="Stop after this many steps.")
@click.option(
    "--keys",
    metavar="OURS=THEIRS,...",
    multiple=True,
    callback=_keys,
    help="Which keys or columns of the records are which: prompt=question,target_new=a.0.text.",
)
@click.option(
    "--retry",
    type=click.Choice(RETRIES),
    multiple=True,
    help="Give again what failed, or was quarantined and can be read now.",
)
@settings_option
@click.option("--dry-run", is_flag=True, help="Read the stream, show how, and change nothing.")
@with_workers
@common
def command(
    out: Output,
    store: str | None,
    executor: Executor,
    source: str | None,
    follow: bool,
    limit: int | None,
    keys: dict[str, str],
    retry: tuple[str, ...],
    changes: tuple[str, ...],
    dry_run: bool,
    **chosen: Any,
) -> int:
    """Apply a stream of corrections.

    The stream is JSON Lines, a JSON array or a table (CSV, TSV), also compressed, from a file, a
    pipe or - (standard input). The same command resumes a run over a file that ended early; a pipe
    is read once, whole. Records that cannot be read go to the store's quarantine (`cedit
    quarantine`); exit code 3 means that something failed or was quarantined. With --retry failed
    and no STREAM, every correction that failed is tried again.

    A correction has a prompt that is a text, or messages, a list of {"role", "content"}, for a
    model that chats; "forms": ["plain", "chat"] makes it hold for the prompt as it is and as a
    user's turn. Prompts and targets are taken to the letter; {} in a prompt is its subject's place.

    \b
    Example:
      cedit apply corrections.jsonl
      cedit apply corrections.jsonl --editor auto --batch-size 50 --repair
      cedit apply corrections.jsonl --editor memit --set memit.place=end
      cedit apply questions.csv --keys prompt=Question,target_new=Answer --dry-run
      cedit apply corrections.jsonl --retry failed --editor memit
      tail -f news.jsonl | cedit apply - --editor tpatcher --json
    """
    from continual.history.warnings import store_warnings
    from continual.listening import Listener
    from continual.streams.places import stream_for
    from store import Store

    tables = editor_settings(changes)
    takes_all = bool(chosen["force"] or chosen["repair"])
    if source is None and (not retry or dry_run):
        raise click.UsageError("Name a STREAM, or - for standard input; or give --retry failed.")
    path, stop = find_store(store), threading.Event()
    with Store.open(path) as opened:
        stream = None
        if source is not None:
            stream = stream_for(opened, source, follow=follow, stop=stop, keys=keys)
            if dry_run:
                return _dry_run(out, opened, stream)
            if not retry and _has_nothing_new(opened, stream, is_forced=takes_all):
                out.warn(store_warnings(opened))
                return _end(out, opened, stream, None, is_stopped=False)

    require_writable(path)
    from continual.session import open_session

    with open_session(path, executor=executor) as session:
        out.warn([*session.notes, *store_warnings(session.store)])
        settings = _settings(session, chosen, tables)
        if stream is not None:
            with listening(out) as session.listener:
                settings = session.calibrated(settings, stream)
        session.listener = Listener(note=out.note)
        with stopping(stop, reads_input=stream is not None and stream.name == "-"):
            if stream is None:
                tally = _apply_failed(session, settings, out, limit)
            else:
                tally = apply_stream(session, stream, settings, out, limit, retry)
        return _end(out, session.store, stream, tally, is_stopped=stop.is_set())


def apply_stream(
    session: Session,
    stream: Stream,
    settings: ApplySettings,
    out: Output,
    limit: int | None,
    retry: Sequence[str] = (),
) -> RunTally:
    """Apply a stream to an open store, show every step, and return the tally."""
    from continual.streams.places import place_in

    place = place_in(session.store, stream)
    position = 0 if place is None else place.position
    total = stream.count() if out.is_live else None
    if total is not None and limit is not None:
        total = min(total, position + limit * settings.batch_size)
    steps = session.steps(stream, settings, on_change=out.note, retry=retry)
    return _shown(session, islice(steps, limit), out, position, total)


def _apply_failed(
    session: Session, settings: ApplySettings, out: Output, limit: int | None
) -> RunTally:
    """Apply all failed corrections again."""
    requests = session.failed
    steps = session.apply_requests(requests, settings)
    return _shown(session, islice(steps, limit), out, 0, len(requests))


def _shown(
    session: Session, steps: Iterator[Step], out: Output, done: int, total: int | None
) -> RunTally:
    from continual.history.corrections import gone
    from continual.history.reports import RunTally, step_record

    tally = RunTally(gone(session.store))
    with watching(out, done, total) as watch:
        for step in steps:
            record = step_record(step)
            tally.take(record)
            watch.take(record)
    session.settle()
    return tally


def _settings(
    session: Session, chosen: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]
) -> ApplySettings:
    """Return the store's settings with the changes from the command line."""
    from continual.editors.chains import chain_of
    from continual.step.settings import Recheck

    changes = {name: value for name, value in chosen.items() if value is not None}
    if "editor" in changes:
        changes["chain"] = chain_of(changes.pop("editor"), session.task.name)
    if tables:
        store_tables = session.settings().editors
        names = {*store_tables, *tables}
        changes["editors"] = {n: {**store_tables.get(n, {}), **tables.get(n, {})} for n in names}
    if "recheck" in changes:
        changes["recheck"] = Recheck.parse(changes["recheck"])
    return session.settings(**changes)


# -- before the model is loaded


def _has_nothing_new(store: Store, stream: Stream, *, is_forced: bool) -> bool:
    """Tell whether the records of a file that this history has not read change nothing, and all of
    its steps are measured. With `is_forced`, every record changes something."""
    from continual.errors import StreamChanged
    from continual.history.known import leading_known
    from continual.streams.places import place_in

    if not stream.has_past or stream.follow or store.ledger(store.head.seq) is None:
        return False
    place = place_in(store, stream)
    try:
        items = iter(stream) if place is None else stream.after(place.position, place.rolling)
        _, is_work = leading_known(store, items, takes_all=is_forced)
        return not is_work
    except StreamChanged:
        return False


def _dry_run(out: Output, store: Store, stream: Stream) -> int:
    """Read the records that an apply would read, show them, and return the exit code."""
    from continual.history.reading_only import read_only

    record = read_only(store, stream)
    lines = [
        f"{counted(record['read'], 'record')} to read: {counted(record['requests'], 'request')}, "
        f"{record['in_force']} in force already, {record['quarantined']} to be quarantined"
    ]
    for request in record["first"]:
        subject = f"  (subject: {request['subject']})" if request.get("subject") else ""
        lines.append(one_line(f"  {request['prompt']} → {request['target_new']}{subject}"))
    out.result(record, *lines, *remark_lines(record))
    return PARTLY_DONE if record["quarantined"] else 0


# -- after a run


def _end(
    out: Output, store: Store, stream: Stream | None, tally: RunTally | None, *, is_stopped: bool
) -> int:
    """Show the summary of a run, with advice, and return the exit code."""
    from continual.history.reports import RunTally

    tally = tally or RunTally()
    summary = tally.summary(store)
    advice = list(_advice(store, stream, summary, is_stopped))
    out.result(summary, *summary_lines(summary), *remark_lines(summary), *advice)
    if is_stopped:
        return INTERRUPTED
    return PARTLY_DONE if tally.is_partial else 0


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the lines that sum up a run."""
    names = ("applied", "skipped", "superseded", "failed", "quarantined")
    counts = ", ".join(f"{summary[name]} {name}" for name in names)
    return [
        f"{summary['read']} read: {counts} in {_seconds(summary['seconds'])}",
        *_turned(summary),
        "",
        "The whole history:",
        rates(summary, "SR", "GR", "ER", "TrainR", "TestR", "Locality"),
        rates(summary, *WATCHED),
        f"head {short(summary['head'])}  fingerprint {short(summary['fingerprint'])}",
    ]


def _seconds(duration: float) -> str:
    """Return a duration in seconds, with a decimal where it says something."""
    return f"{duration:.0f} s" if duration >= 100 else f"{duration:.1f} s"


def _turned(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line on corrections that came back, and one on answers that broke or were mended."""
    if summary["again"]:
        yield f"{counted(summary['again'], 'correction')} of these had been taken back before."
    if not (summary["broke"] or summary["recovered"]):
        return
    repairs = f", and {summary['recovered']} were mended" if summary["recovered"] else ""
    yield f"{counted(summary['broke'], 'answer')} that had been right broke{repairs}."


def remark_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield remarks about odd records, a line for each kind."""
    reasons = record["quarantine"]
    for entry in reasons[:REASONS_SHOWN]:
        ellipsis = ", …" if entry["count"] > len(entry["lines"]) else ""
        lines = ", ".join(map(str, entry["lines"]))
        noun = "line" if entry["count"] == 1 else f"{entry['count']} records, lines"
        yield one_line(f"quarantined, {noun} {lines}{ellipsis}: {entry['reason']}")
    if len(reasons) > REASONS_SHOWN:
        yield f"and for {counted(len(reasons) - REASONS_SHOWN, 'other reason')}: cedit quarantine"
    if record["unknown_keys"]:
        yield one_line(_unknown_keys(record["unknown_keys"]))
    if count := record["unnamed_subjects"]:
        verb = "names" if count == 1 else "name"
        yield f"{counted(count, 'request')} {verb} a subject that the prompt does not"


def _unknown_keys(unknown: Mapping[str, int]) -> str:
    from continual.readers import alike

    listing = ", ".join(f"{key} ({count})" for key, count in unknown.items())
    guesses = "".join(f" Did you mean {guess} by {key}?" for key, guess in alike(unknown))
    return f"keys that no format has, kept beside their requests: {listing}.{guesses}"


def _advice(
    store: Store, stream: Stream | None, summary: Mapping[str, Any], is_stopped: bool
) -> Iterator[str]:
    """Yield advice on the next command."""
    if is_stopped:
        steps = counted(summary["steps"], "step")
        yield f"Stopped after {steps}, all kept. To go on, give the same command again."
    elif not summary["steps"]:
        yield from _nothing(store, stream)
    if summary["broke"]:
        yield "See what broke: cedit diff REVISION head; to mend it: cedit apply --repair"
    if summary["failed"]:
        yield (
            "See why requests failed: cedit list --failed, then cedit show REQUEST. To give them "
            "again: --retry failed, with another --editor"
        )
    if summary["quarantined"]:
        yield (
            "See what was quarantined: cedit quarantine. To give it again when it can be read: "
            "--retry quarantined"
        )


def _unread(stream: Stream) -> str:
    """Return the reason why nothing of a stream without a place in the history was applied."""
    count = stream.count()
    if count is None:
        return (
            "Nothing new: the input is empty, or in force already, or was answered rightly before."
        )
    if count == 0:
        return "The stream is empty: nothing was read."
    verbs = ("is", "was") if count == 1 else ("are", "were")
    return (
        f"Nothing new: its {counted(count, 'record')} {verbs[0]} in force already, or {verbs[1]} "
        "answered rightly before."
    )


def _nothing(store: Store, stream: Stream | None) -> Iterator[str]:
    """Yield the reason why nothing was done, and the commands that would do something."""
    from continual.history.inspection import retained_at
    from continual.streams.places import place_in

    if stream is None:
        yield "Nothing to give again: no correction of this history has failed."
        return
    place = place_in(store, stream)
    if place is None:
        yield _unread(stream)
        return
    records = counted(place.position, "record")
    yield f"Nothing new: this history has read all of the stream, {records}."
    retention = retained_at(store, store.head)
    if failures := len(retention.requests) - retention.applied:
        yield (
            f"{counted(failures, 'correction')} of this history failed. To give them again: "
            "--retry failed, with another --editor"
        )
    names = {stream.name, stream.short_name()}
    if count := sum(record.get("stream") in names for record in store.quarantined()):
        records = counted(count, "record")
        yield f"{records} of it went to quarantine: cedit quarantine, --retry quarantined"
