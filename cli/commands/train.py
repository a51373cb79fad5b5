"""`cedit train`: collects key statistics of a base model, trains SERAC's model and networks of
editors by gradients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import Function, common, find_store, with_workers
from cli.output import Output, columns

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.table import Table

    from continual.execution import Executor
    from continual.gradients.training import NetworkEpoch
    from continual.memory.serac_training import Epoch
    from continual.requests import Request
    from continual.statistics import CollectingProgress, KeyStatistics, Statistics
    from continual.streams import Item

File = click.Path(exists=True, dir_okay=False, path_type=Path)


def _blocks(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Read blocks by number, each once and in order, from `0,2` or `3-8`. Raises BadParameter."""
    if value is None:
        return None
    try:
        spans = [part.partition("-") for part in value.split(",")]
        ranges = [range(int(start), int(end if dash else start) + 1) for start, dash, end in spans]
    except ValueError:
        raise click.BadParameter(f"{value!r} names no blocks: write 0,2 or 3-8.") from None
    if not all(ranges):
        raise click.BadParameter(f"{value!r} has a range without blocks: write 3-8, not 8-3.")
    return tuple(sorted({block for span in ranges for block in span}))


def _network_options(epochs: int) -> Callable[[Function], Function]:
    """Return a decorator that adds the options of a network's training."""
    options = (
        click.argument("requests", type=File),
        click.option(
            "--out",
            "target",
            type=click.Path(path_type=Path),
            required=True,
            metavar="FILE",
            help="The new file that the network is left in.",
        ),
        click.option(
            "--blocks",
            callback=_blocks,
            metavar="N[,N|N-N]",
            help="Edit the FFN matrices of these blocks (default: of the last).",
        ),
        click.option(
            "--sides",
            type=click.Choice(("both", "up", "down")),
            default="down",
            show_default=True,
            help="The matrices of a block: into its FFN, out of it, or both.",
        ),
        click.option(
            "--epochs", type=click.IntRange(1), default=epochs, show_default=True, metavar="N"
        ),
        click.option("--seed", type=int, default=0, show_default=True, metavar="N"),
        common,
    )

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.group("train")
def command() -> None:
    """Train the aids of editors for a base model.

    Nothing here changes the model or its history. Every subcommand has --store and --json.

    \b
    Example:
      cedit train stats --text wiki.jsonl
    """


@command.command("stats")
@click.option(
    "--text",
    "texts",
    type=File,
    multiple=True,
    help='Text to learn from: JSON Lines or an array of objects with a "text" or "content", or '
    "plain text in paragraphs. May be repeated. Without it the base writes text itself; the atlas "
    "has its own.",
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
@click.option(
    "--out",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the statistics as a pack, for other stores of the same base model. Without --text "
    "only missing ones are collected first.",
)
@click.option(
    "--from",
    "source",
    type=File,
    metavar="FILE",
    help="Take the statistics from a pack, and collect nothing.",
)
@with_workers
@common
def stats(
    out: Output,
    store: str | None,
    executor: Executor,
    texts: tuple[Path, ...],
    blocks: tuple[int, ...] | None,
    tokens: int | None,
    target: Path | None,
    source: Path | None,
) -> None:
    """Collect the key statistics that MEMIT and its kin weigh an edit by.

    They are the second moments of each block's FFN keys over the text, on the base model. The same
    command resumes an interrupted run; the store can be used meanwhile. The convergence is the
    distance between the statistics of two halves of the text, relative to their size: more text
    makes it smaller.

    A pack (--out) is one safetensors file. A store takes it in (--from) if it is of the store's own
    base model; the statistics then have the digests that they had where they were collected.

    With --json there is a line for each block: {"type":"statistics","block","keys",
    "convergence","digest","stored"}; with --out a last one: {"type":"pack","pack","digest"}.

    \b
    Example:
      cedit train stats
      cedit train stats --text wiki.jsonl --blocks 3-8 --tokens 1000000
      cedit train stats --blocks 3-8 --out stats.safetensors
      cedit train stats --from stats.safetensors
    """
    from continual.session import open_session

    if source is not None and (texts or tokens or target):
        raise click.UsageError("--from collects nothing: give it without --text, --tokens, --out.")
    with open_session(find_store(store), writable=False, at="base", executor=executor) as session:
        session.listener.note = out.note
        statistics = session.statistics
        numbers: Sequence[int] = blocks or range(session.edited.anatomy.block_count)
        if source is not None:
            numbers = statistics.take_in(source, blocks)
        elif target is not None and not (texts or tokens):
            statistics.require(numbers)
        else:
            _collect(out, statistics, texts, blocks, tokens)
        records = [_record(statistics.get(block)) for block in numbers]
        digest = None if target is None else statistics.pack(target, numbers)
    for record in records:
        out.record(record)
    out.text(_table(records))
    if target is not None:
        pack = {"type": "pack", "pack": str(target.absolute()), "digest": digest}
        out.result(pack, f"packed in {target}: {digest}")


def _collect(
    out: Output,
    statistics: Statistics,
    texts: tuple[Path, ...],
    blocks: tuple[int, ...] | None,
    tokens: int | None,
) -> None:
    """Collect statistics over some files, or over the model's own text. Raises UsageError if there
    is neither."""
    from continual.statistics import OWN_TOKENS
    from continual.statistics.texts import TextFiles

    text = TextFiles(texts) if texts else statistics.texts
    if text is None:
        raise click.UsageError("This model writes no text of its own: name some with --text.")
    limit = tokens if texts or tokens else OWN_TOKENS
    _watch(out, statistics.collect(text, blocks, tokens_max=limit, on_change=out.note), limit)


@command.command("serac")
@click.argument("requests", type=File)
@click.option(
    "--out",
    "target",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The new directory that the model is left in.",
)
@click.option(
    "--start",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="The causal model to begin with (default: the store's base model).",
)
@click.option("--epochs", type=click.IntRange(1), default=4, show_default=True, metavar="N")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N")
@common
def serac(
    out: Output,
    store: str | None,
    requests: Path,
    target: Path,
    start: Path | None,
    epochs: int,
    seed: int,
) -> None:
    """Train SERAC's counterfactual model on a file of requests.

    The model reads an edit before a question. It learns to give the edit's answer if the question
    is about this edit, and its old answer if not. Every tenth request is held out and measures it.
    The same command resumes an interrupted run after its last whole epoch. At the end it prints the
    lines for the store's cedit.toml with the model and its fingerprint; without the fingerprint a
    replaced model goes unnoticed:

    \b
      [memory]
      counterfactual = "DIR"
      counterfactual_fingerprint = "…"

    With --json there is a line for each epoch: {"type":"epoch","epoch","loss","inside","beside"},
    and a last one: {"type":"model","counterfactual","counterfactual_fingerprint"}.

    \b
    Example:
      cedit train serac corrections.jsonl --out serac-model
    """
    from continual.base import load_base
    from continual.editors.chains import require_edits
    from continual.memory.serac_training import InitialReader, SeracRecipe, train_serac
    from continual.model_files import directory_fingerprint
    from continual.settings import StoreSettings
    from continual.streams import open_stream
    from continual.tasks import make_task, task_class
    from store import Store

    with Store.open(find_store(store)) as opened:
        settings = StoreSettings.of(opened.settings)
    require_edits("serac", task_class(settings.task).name)
    base = load_base(start or settings.model.path, device=settings.model.device)
    task = make_task(base, settings.task)
    recipe = SeracRecipe(epochs=epochs, seed=seed)
    begin = InitialReader(base.model, base.tokenizer, task)
    examples = list(_requests(out, open_stream(str(requests))))
    for epoch in train_serac(begin, examples, recipe, target):
        record = {"type": "epoch", "epoch": epoch.number, **_measured(epoch)}
        out.result(record, _told(epoch))
    directory = target.absolute()
    table = {
        "counterfactual": str(directory),
        "counterfactual_fingerprint": directory_fingerprint(directory),
    }
    out.note("for cedit.toml:")
    out.verbatim({"type": "model", **table}, _lines_of("memory", table))


@command.command("mend")
@_network_options(epochs=20)
def mend(**options: Any) -> None:
    """Train MEND's network on a file of requests.

    The network turns the gradient of one edit into its update. It learns to give the edit's answer
    to its prompt and rephrases, and to leave other texts as they were: the request's own locality
    probes, and the store's training probes. Requests that the base answers rightly are passed over.
    Every tenth one is held out and measures it; training ends early when these no longer gain, and
    the best epoch counts. The same command resumes an interrupted run after its last whole epoch.
    The base is the store's; nothing here changes it or its history.

    At the end it prints the lines for the store's cedit.toml. The digest names the network in every
    revision that is made with it:

    \b
      [editor.mend]
      network = "FILE"
      network_digest = "…"

    With --json there is a line for each epoch: {"type":"epoch","epoch","loss","inside","beside"},
    and a last one: {"type":"network","network","network_digest"}.

    \b
    Example:
      cedit train mend corrections.jsonl --out mend.safetensors
    """
    _train_network("mend", **options)


@command.command("malmen")
@_network_options(epochs=20)
def malmen(**options: Any) -> None:
    """Train MALMEN's network on a file of requests.

    As `cedit train mend`, for updates of whole batches: the network gives the shift that each token
    of an answer wants, and one least-squares fit serves all of them.

    \b
      [editor.malmen]
      network = "FILE"
      network_digest = "…"

    \b
    Example:
      cedit train malmen corrections.jsonl --out malmen.safetensors
    """
    _train_network("malmen", **options)


@command.command("ke")
@_network_options(epochs=20)
def ke(**options: Any) -> None:
    """Train KnowledgeEditor's network on a file of requests.

    As `cedit train mend`: the network reads an edit as a text, and gates the gradient by it. It
    learns to give the edit's answer under a bound on the change of other answers, which tightens
    while it succeeds.

    \b
      [editor.ke]
      network = "FILE"
      network_digest = "…"

    \b
    Example:
      cedit train ke corrections.jsonl --out ke.safetensors
    """
    _train_network("ke", **options)


@dataclass(frozen=True)
class _NetworkOptions:
    """The options of `_network_options`."""

    requests: Path
    target: Path
    blocks: tuple[int, ...] | None
    sides: str
    epochs: int
    seed: int


def _train_network(method: str, out: Output, store: str | None, **given: Any) -> None:
    """Train the network of an editor by gradients, and print its lines for cedit.toml."""
    options = _NetworkOptions(**given)
    from continual.choices import EDITORS
    from continual.editors.chains import require_edits
    from continual.gradients.config import GradientConfig
    from continual.gradients.teaching import NetworkJob
    from continual.gradients.trained import NetworkFile
    from continual.gradients.training import NetworkRecipe
    from continual.session import open_session
    from continual.streams import open_stream

    editor = EDITORS[method].load()
    choice = GradientConfig.of({"blocks": options.blocks, "sides": options.sides})
    recipe = NetworkRecipe(epochs=options.epochs, seed=options.seed)
    job = NetworkJob(editor.network_type, editor.reads_whole_texts, choice, recipe)
    stream = open_stream(str(options.requests))
    with open_session(find_store(store), writable=False, at="base") as session:
        require_edits(method, session.task.name)
        examples = list(_requests(out, session.seeing(stream)))
        known = session.run_state.known_answers().training
        for epoch in job.run(session.site, examples, known, options.target):
            record = {"type": "epoch", "epoch": epoch.number, **_measured(epoch)}
            out.result(record, _told(epoch))
    file = NetworkFile.of(options.target.absolute())
    table = {"network": str(file.path), "network_digest": file.digest}
    out.note("for cedit.toml:")
    out.verbatim({"type": "network", **table}, _lines_of(f"editor.{method}", table))


def _lines_of(name: str, table: Mapping[str, str]) -> str:
    """Return a table of texts as TOML: every JSON string is a TOML string."""
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(table[key])}" for key in table)])


def _requests(out: Output, stream: Iterable[Item]) -> Iterator[Request]:
    """Yield all requests of a stream; note each record that cannot be read, and pass over it."""
    for item in stream:
        if item.reason is not None:
            out.note(f"record {item.number} is passed over: {item.reason}")
        yield from item.requests


def _measured(epoch: Epoch | NetworkEpoch) -> dict[str, Any]:
    return {"loss": epoch.loss, "inside": epoch.inside, "beside": epoch.beside}


def _told(epoch: Epoch | NetworkEpoch) -> str:
    rates = [
        f"{name} {rate:.3f}"
        for name, rate in (("in scope", epoch.inside), ("beside it", epoch.beside))
        if rate is not None
    ]
    return ", ".join([f"epoch {epoch.number}: loss {epoch.loss:.4f}", *rates])


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


def _watch(out: Output, steps: Iterator[CollectingProgress], tokens: int | None) -> None:
    """Run the steps, with a bar on a terminal, towards `tokens` if given."""
    if not out.is_live:
        for _ in steps:
            pass
        return
    with _bar(out) as bar:
        task = bar.add_task("collecting", total=tokens, documents=0)
        for step in steps:
            bar.update(task, completed=step.tokens, documents=step.documents)


def _bar(out: Output) -> Bar:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:,.0f} tokens of {task.fields[documents]:,} documents"),
        TimeRemainingColumn(),
        console=out.errors,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
