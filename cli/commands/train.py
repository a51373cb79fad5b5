"""`cedit train`: what editors need to have learned of a base model before they edit it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import common, find_store
from cli.output import Output, columns, rate

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.table import Table

    from continual.memory.counterfactual import Epoch
    from continual.statistics import KeyStatistics, Progress

File = click.Path(exists=True, dir_okay=False, path_type=Path)
_TOKENS = "{task.completed:,.0f} tokens of {task.fields[documents]:,} documents"


def _blocks(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Blocks by number, each once and in order: of `0,2`, or of `3-8`."""
    if value is None:
        return None
    try:
        spans = [part.partition("-") for part in value.split(",")]
        ranges = [
            range(int(first), int(last if dash else first) + 1) for first, dash, last in spans
        ]
    except ValueError:
        raise click.BadParameter(f"{value!r} names no blocks: write 0,2 or 3-8.") from None
    if not all(ranges):
        raise click.BadParameter(f"{value!r} has a range without blocks: write 3-8, not 8-3.")
    return tuple(sorted({block for span in ranges for block in span}))


@click.group("train")
def command() -> None:
    """Learn what editors need besides the base model.

    Nothing here changes the model or its history: what is learned is kept in the store's cache, or
    in a folder of its own. Every subcommand has --store and --json.

    \b
    Example:
      cedit train stats --text wiki.jsonl
      cedit train serac requests.jsonl --out counterfactual
    """


@command.command("stats")
@click.option(
    "--text",
    "texts",
    type=File,
    multiple=True,
    help='Text to learn from: JSON Lines or an array of objects with a "text" or "content", or '
    "plain text in paragraphs. May be repeated. The atlas has its own.",
)
@click.option(
    "--blocks",
    callback=_blocks,
    metavar="N[,N|N-N]",
    help="Of which blocks (default: of all).",
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    metavar="N",
    help="Stop after so many (default: at the end).",
)
@common
def stats(
    out: Output,
    store: str | None,
    texts: tuple[Path, ...],
    blocks: tuple[int, ...] | None,
    tokens: int | None,
) -> None:
    """Collect the key statistics that MEMIT and its kin weigh an edit by.

    They are the second moments of each block's FFN keys over the text, on the base model. A run
    that was interrupted goes on where it was when the same command is given again; the store can
    be used meanwhile. The convergence is the distance between the statistics of two halves of
    the text, relative to their size: more text makes it smaller.

    With --json there is a line for each block: {"type":"statistics","block","keys",
    "convergence","digest","stored"}.

    \b
    Example:
      cedit train stats
      cedit train stats --text wiki.jsonl --blocks 3-8 --tokens 1000000
    """
    from continual.session import open_session
    from continual.statistics import OWN_TOKENS, Statistics
    from continual.texts import TextFiles

    with open_session(find_store(store), writable=False, at="base") as session:
        statistics = Statistics.of(session.store, session.edited)
        text = TextFiles(texts) if texts else statistics.texts
        if text is None:
            raise click.UsageError("This model has no text of its own: name some with --text.")
        limit = tokens if texts or tokens else OWN_TOKENS
        steps = statistics.collect(text, blocks, tokens_max=limit, on_change=out.note)
        _watch(out, steps, limit)
        named = blocks or range(session.edited.anatomy.block_count)
        records = [_record(statistics.get(block)) for block in named]
    for record in records:
        out.record(record)
    out.text(_table(records))


@command.command("serac")
@click.argument("requests", type=File)
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The folder to make, a model directory.",
)
@click.option("--start", metavar="DIR", help="A model to start from (default: the base model).")
@click.option("--epochs", type=click.IntRange(1), metavar="N", help="How often all is read (3).")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    help="The highest step size (1e-4).",
)
@click.option("--seed", type=int, metavar="N", help="Of the order of the batches (0).")
@common
def serac(
    out: Output,
    store: str | None,
    requests: Path,
    folder: Path,
    start: str | None,
    **chosen: Any,
) -> None:
    """Train SERAC's counterfactual model on requests with rephrases.

    It learns to answer an edit's prompt and rephrases by the edit that stands in front of them, and
    locality prompts as they say. Held-out rephrases are only measured. The folder is there when all
    is done, or not at all. To use it, put what is printed in the end into the store's cedit.toml.

    With --json there is one line: {"type":"counterfactual","path","fingerprint","lessons",
    "right_before","right_after"}.

    \b
    Example:
      cedit train serac requests.jsonl --out counterfactual
      cedit train serac requests.jsonl --start distilgpt2 --epochs 5 --out counterfactual
    """
    from continual.editors.serac import SeracConfig
    from continual.memory.counterfactual import (
        CounterfactualRun,
        CounterfactualTraining,
        Lessons,
        require_vacant,
    )
    from continual.session import open_session
    from continual.streams import open_stream

    folder = folder.absolute()
    require_vacant(folder)
    training = CounterfactualTraining(**{n: v for n, v in chosen.items() if v is not None})
    read = [request for item in open_stream(str(requests)) for request in item.requests]
    with open_session(find_store(store), writable=False, at="base") as session:
        form = SeracConfig.of(session.store.settings.get("editor", {}).get("serac", {})).form
        lessons = Lessons.of(read, session.site, form)
        begin = start or session.store.settings["model"]["path"]
        run = CounterfactualRun(session.site, lessons, training, begin)
        _watch_epochs(out, run.steps())
        trained = run.save(folder)
    record = {
        "type": "counterfactual",
        "path": str(trained.path),
        "fingerprint": trained.fingerprint,
        "lessons": trained.lessons,
        "right_before": trained.right_before,
        "right_after": trained.right_after,
    }
    out.result(
        record,
        f"{trained.lessons} lessons; held-out rephrases right: "
        f"{rate(trained.right_before)} → {rate(trained.right_after)}",
        "To use it, in cedit.toml:",
        "[memory]",
        f"counterfactual = {json.dumps(str(trained.path), ensure_ascii=False)}",
        f'counterfactual_fingerprint = "{trained.fingerprint}"',
    )


def _watch_epochs(out: Output, steps: Iterator[Epoch]) -> None:
    """Go through with it, with a bar on a terminal."""
    if not out.is_live:
        for _ in steps:
            pass
        return
    with _bar(out, "epoch {task.fields[epoch]}, loss {task.fields[loss]:.4f}") as bar:
        task = bar.add_task("training", total=None, epoch=1, loss=float("nan"))
        for step in steps:
            bar.update(
                task, total=step.steps, completed=step.step, epoch=step.number, loss=step.loss
            )


def _record(found: KeyStatistics) -> dict[str, Any]:
    return {
        "type": "statistics",
        "block": found.block,
        "keys": found.count,
        "convergence": found.convergence,
        "digest": found.digest,
        "stored": str(found.path),
    }


def _table(records: Iterable[Mapping[str, Any]]) -> Table:
    rows = ((r["block"], r["keys"], f"{r['convergence']:.4f}", r["stored"]) for r in records)
    return columns(["block", "keys", "convergence", "stored"], rows, "block keys convergence")


def _watch(out: Output, steps: Iterator[Progress], tokens: int | None) -> None:
    """Go through with it, with a bar on a terminal, of so many tokens where that is known."""
    if not out.is_live:
        for _ in steps:
            pass
        return
    with _bar(out) as bar:
        task = bar.add_task("collecting", total=tokens, documents=0)
        for step in steps:
            bar.update(task, completed=step.tokens, documents=step.documents)


def _bar(out: Output, counted: str = _TOKENS) -> Bar:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn(counted),
        TimeRemainingColumn(),
        console=out.errors,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
