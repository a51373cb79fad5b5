"""`cedit bench`: runs the project's benchmarks from the project's folder.

The installed distribution leaves the benchmarks out. A command here finds them beside the package
or in the current folder, and runs each in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click


@click.group("bench")
def command() -> None:
    """Run the published protocols.

    A benchmark makes its own stores in its --output; every other command can read them with
    --store. Every subcommand has --json.

    \b
    Example:
      cedit bench protocol --task fever --editors tpatcher,ft-last --output runs/fever
    """


@command.command("protocol")
@click.option(
    "--task",
    type=click.Choice(["fever", "zsre", "counterfact"]),
    required=True,
    help="Claims to classify, questions to answer, or prompts to continue.",
)
@click.option(
    "--architecture",
    type=click.Choice(["bert", "bart", "t5", "gpt2"]),
    help="Of the initial model (default: bert for fever, bart for zsre).",
)
@click.option("--editors", metavar="NAME,…", help="Each runs on every fold (default: tpatcher).")
@click.option("--folds", type=click.IntRange(1), metavar="N", help="Parts of D_edit (default: 3).")
@click.option(
    "--edits",
    type=click.IntRange(1),
    metavar="N",
    help="Attempted in each fold, at most (default: 150).",
)
@click.option("--seed", type=int, metavar="N", help="Of splits, streams and stores (default: 0).")
@click.option("--settings", metavar="JSON", help='Of the editors: {"tpatcher": {"margin": 0.7}}.')
@click.option(
    "--start",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="A pretrained model to fine-tune on D_train: the paper's BERT-base or BART-base.",
)
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="The initial model as it is (default: a small one is trained here, and kept).",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False),
    required=True,
    metavar="DIR",
    help="For stores, results and curves; what is finished there is not run again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON Lines.")
def protocol(as_json: bool, **options: Any) -> None:
    """Run T-Patcher's sequential protocol.

    An initial model, trained on D_train, meets a stream of inputs that it was not trained on. Each
    wrong answer is edited, and SR, GR, ER, TrainR and TestR are measured after every edit. The
    table has mean and deviation over the folds, beside the published rows. The same command resumes
    an interrupted run.

    With --json there is a line for each row: {"type":"protocol","editor","model","folds","met",
    "edits","SR","GR","ER","TrainR","TestR","edit_s","recheck_s","bytes"}.

    \b
    Example:
      cedit bench protocol --task fever --editors tpatcher,ft-last --output runs/fever
      cedit bench protocol --task zsre --architecture t5 --folds 2 --edits 100 --output runs/t5
    """
    flags = {f"--{name}": str(value) for name, value in options.items() if value is not None}
    arguments = [part for pair in flags.items() for part in pair]
    code = run_benchmark("protocol", [*arguments, *(["--json"] if as_json else [])])
    click.get_current_context().exit(code)


def run_benchmark(name: str, arguments: Iterable[str]) -> int:
    """Run a benchmark with these arguments; return its exit code. Raises BenchmarksMissing."""
    root = benchmarks_root()
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    program = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(program, env=environment, check=False).returncode


def benchmarks_root() -> Path:
    """Return the project's folder. Raises BenchmarksMissing where there is none."""
    from continual.errors import BenchmarksMissing

    checkout = Path(__file__).resolve().parents[2]
    for root in (checkout, Path.cwd()):
        if (root / "benchmarks" / "protocol").is_dir():
            return root
    raise BenchmarksMissing(
        f"There are no benchmarks in {checkout} nor here: they are in the project's own folder, "
        "and not in what is installed. Get the project, and call cedit in its folder."
    )
