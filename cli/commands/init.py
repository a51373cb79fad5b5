"""`cedit init`: makes a store for a base model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.commands.watch import watch_line, watch_record
from cli.options import TaskName, common, with_workers
from cli.output import DASH, Output, short
from cli.watching import writing

if TYPE_CHECKING:
    from continual.execution import Executor
    from continual.session import Session

File = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("init")
@click.argument("folder", metavar="[STORE]", required=False)
@click.option("--model", default="atlas", help="A model directory, or atlas, the embedded one.")
@click.option(
    "--task",
    type=TaskName(),
    help="What the model does: causal unless said otherwise.",
)
@click.option("--terminator", help="Text that ends every answer, such as a newline.")
@click.option(
    "--blank",
    type=click.Choice(["auto", "always", "never"]),
    help="Between a plain prompt and its answer: auto, unless said, puts one where plain text has "
    "one, and none in code, in a chat and in scripts without blanks.",
)
@click.option(
    "--train-probes", type=File, help="JSON Lines of prompt (or messages) and answer, for TrainR."
)
@click.option(
    "--test-probes", type=File, help="JSON Lines of prompt (or messages) and answer, for TestR."
)
@click.option(
    "--text",
    type=File,
    multiple=True,
    help="General text that edits leave alone, in the place of what the base writes itself.",
)
@click.option(
    "--no-watch",
    is_flag=True,
    help="Watch nothing: edits leave alone what probes name, and no more.",
)
@click.option(
    "--no-calibration",
    is_flag=True,
    help="Editors use their defaults: at their first use no settings are tried on the model.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs.")
@click.option(
    "--device-map",
    default="",
    metavar="auto|balanced|FILE.json",
    help="Put the model's blocks on several devices, or on the disk, by accelerate.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="The precision that the model runs in.",
)
@click.option(
    "--anatomy",
    multiple=True,
    metavar="KEY=NAME",
    help="Where a part of the model is, if it is not found: down=mlp.c_proj. May be repeated.",
)
@with_workers
@common
def command(
    out: Output,
    store: str | None,
    executor: Executor,
    folder: str | None,
    task: str | None,
    terminator: str | None,
    blank: str | None,
    anatomy: tuple[str, ...],
    no_watch: bool,
    no_calibration: bool,
    **told: Any,
) -> None:
    """Make a store for a base model.

    The store is a folder, .cedit unless named. The model's accuracy on the probe sets is
    measured once; TrainR and TestR compare with it. The base writes some general text, which
    edits leave alone; [watch] in cedit.toml sets the amount.

    \b
    Example:
      cedit init
      cedit init corrections --model ./gpt2 --train-probes train.jsonl --test-probes test.jsonl
    """
    from continual.new_store import NewStore, init
    from continual.watch.config import UNWATCHED

    new_store = NewStore(
        task=_task(name=task, terminator=terminator, blank=blank),
        anatomy=_pairs(anatomy),
        watch=UNWATCHED if no_watch else None,
        calibration={"at_first_use": False} if no_calibration else None,
        **told,
    )
    began = time.perf_counter()
    with (
        writing(out) as on_progress,
        init(
            _place(folder, store), new_store, on_progress=on_progress, executor=executor
        ) as session,
    ):
        record = _record(session, time.perf_counter() - began)
    out.result(record, *_text(record))
    out.warn(record["warnings"])


def _place(folder: str | None, store: str | None) -> Path:
    from store.store import ENVIRONMENT_VARIABLE, FOLDER_NAME

    if folder and store:
        raise click.UsageError("Name the store once: as STORE or with --store.")
    return Path(folder or store or os.environ.get(ENVIRONMENT_VARIABLE) or FOLDER_NAME)


def _task(**said: str | None) -> dict[str, str]:
    """Return the given lines of the `[task]` table; the model sets the rest."""
    return {key: value for key, value in said.items() if value is not None}


def _pairs(said: tuple[str, ...]) -> dict[str, str]:
    """Read the `[anatomy]` table from KEY=NAME pairs. Raises UsageError."""
    pairs = [text.partition("=") for text in said]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise click.UsageError(f"--anatomy takes KEY=NAME, not {key + equals + value!r}.")
    return {key: value for key, _, value in pairs}


def _record(session: Session, seconds: float) -> dict[str, Any]:
    from continual.history.inspection import base_accuracies
    from continual.history.warnings import store_warnings

    store = session.store
    return {
        "type": "store",
        "store": str(store.path),
        "model": store.settings["model"]["path"],
        "task": store.settings["task"]["name"],
        "base": store.base.fingerprint,
        "probes": store.settings["probes"],
        "accuracy": base_accuracies(store),
        "watch": watch_record(session, seconds),
        "warnings": [*session.notes, *store_warnings(store)],
    }


def _text(record: dict[str, Any]) -> list[str]:
    lines = [
        f"Made a store in {record['store']}",
        f"for the model {record['model']}, fingerprint {short(record['base'])}.",
    ]
    for name, count in record["probes"].items():
        accuracy = record["accuracy"].get(name)
        share = DASH if accuracy is None else f"{accuracy:.1%}"
        lines.append(f"{count} {name} probes, {share} right before the first edit.")
    if not record["probes"]:
        lines.append("No probe sets: TrainR and TestR will not be measured.")
    lines.append(watch_line(record["watch"]))
    return [*lines, "Next: cedit apply corrections.jsonl"]
