"""Measures T-Patcher's sequential protocol, by task, editor and fold.

    python -m benchmarks.protocol --task fever|zsre|counterfact [--architecture bert|bart|t5]
        [--editors tpatcher,…] [--folds N] [--edits N] [--seed N] [--settings JSON]
        [--held-out test|validation] [--start DIR [--epochs N] | --model DIR] [--cache DIR]
        [--network-requests N] [--network-epochs N] [--beside DIR …] [--plots DIR]
        [--workers N] [--cluster ADDRESS]
        --output DIR

The initial model is trained once on D_train and kept in the cache: a small one from scratch, or
with `--start` a pretrained one (BERT-base, BART-base: the paper's setting). `--model` takes a
directory as it is, which must have been trained on the task. `--editors all` are all that edit the
task's models; an editor that cannot edit this one is left out, with its reason. The networks of
mend, malmen and ke are trained on D_train, with the answers of other examples, and kept in the
output; `--settings '{"mend": {"network": …}}'` gives one. Given again with the same `--output`,
the command reads finished runs from their files and goes on with interrupted ones. The table has
the mean and the deviation over folds, beside the published rows; the folder gets `table.json` and
the curves. `--beside` adds to both the finished runs of other outputs on the same folds, for
example the baselines with fewer training probes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks import tables
from benchmarks.counterfact_model import data_folder, default_cache
from benchmarks.protocol import reporting, settings
from benchmarks.protocol.runs import ProtocolRuns, RunPlan
from continual.choices import EDITORS
from continual.errors import CeditError
from continual.workers.choice import executor_of


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.protocol", description=(__doc__ or "").splitlines()[0]
    )
    made.add_argument("--task", choices=tuple(settings.TASKS), required=True)
    made.add_argument("--architecture", help="bert for fever, bart or t5 for zsre")
    made.add_argument("--editors", default="tpatcher", metavar="NAME,…")
    made.add_argument("--folds", type=int, default=3, metavar="N")
    made.add_argument("--edits", type=int, default=150, metavar="N", help="attempted, in each fold")
    made.add_argument("--seed", type=int, default=0, metavar="N")
    made.add_argument("--train-probes", type=int, default=RunPlan.train_probes, metavar="N")
    made.add_argument("--held-out", choices=("test", "validation"), default=RunPlan.held_out)
    made.add_argument("--settings", type=json.loads, default={}, help='{"EDITOR": {…}}, as JSON')
    made.add_argument("--network-requests", type=int, default=300, metavar="N")
    made.add_argument("--network-epochs", type=int, default=8, metavar="N")
    made.add_argument("--epochs", type=int, metavar="N", help="of fine-tuning what --start names")
    begin = made.add_mutually_exclusive_group()
    begin.add_argument("--start", type=Path, metavar="DIR", help="fine-tune this on D_train")
    begin.add_argument("--model", type=Path, metavar="DIR", help="an initial model that is there")
    made.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR")
    made.add_argument("--output", type=Path, required=True, metavar="DIR")
    made.add_argument("--beside", type=Path, nargs="+", default=(), metavar="DIR")
    made.add_argument("--plots", type=Path, metavar="DIR", help="where the curves go, too")
    made.add_argument("--json", action="store_true", help="print JSON Lines")
    made.add_argument("--workers", type=int, metavar="N", help="make runs side by side")
    made.add_argument("--cluster", metavar="ADDRESS", help="of Ray: auto, local, ray://HOST:PORT")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    return made


def run(options: argparse.Namespace) -> None:
    """Make all runs, the table and the curves. Raises CeditError."""
    known = settings.ARCHITECTURES[options.task]
    architecture = options.architecture or known[0]
    if architecture not in known:
        raise CeditError(f"{options.task} has {' or '.join(known)}, not {architecture}.")
    if options.start and options.task == "counterfact":
        raise CeditError("counterfact teaches its own decoder: give --model, not --start.")
    if options.epochs is not None and not options.start:
        raise CeditError("--epochs is of fine-tuning: name what to start from with --start.")
    data = data_folder()
    if not data.is_dir():
        raise CeditError(f"There is no folder of datasets {data}: name it with CEDIT_DATA.")
    asked = settings.SettingChoices(
        architecture,
        data=data,
        cache=options.cache,
        seed=options.seed,
        model=options.model,
        start=options.start,
        epochs=options.epochs,
    )
    setting = settings.TASKS[options.task](asked)
    settings.note_of(setting)
    plan = RunPlan(
        editors_of(options.editors, str(setting.engine_task["name"])),
        options.folds,
        options.edits,
        options.seed,
        options.train_probes,
        options.held_out,
        options.settings,
        options.network_requests,
        options.network_epochs,
    )
    protocol = ProtocolRuns(setting, plan, options.output)
    with executor_of(options.workers, options.cluster) as executor:
        own = protocol.run(executor)
    runs = [*own, *protocol.beside(options.beside, own)]
    rows = reporting.table(setting, runs)
    initial = reporting.initial(runs)
    if options.json:
        for row in rows:
            print(json.dumps({"type": "protocol", **row}))
    else:
        title = f"{options.task}, {architecture}, {options.folds} folds"
        tables.show("The initial model", reporting.INITIAL_COLUMNS, initial)
        tables.show(title, reporting.COLUMNS, rows)
    name = f"protocol-{options.task}-{architecture}"
    record = {"initial": initial, "rows": rows, "refused": protocol.refused}
    tables.write_json(options.output / "table.json", name, record)
    for folder in filter(None, (options.output, options.plots)):
        reporting.draw(reporting.curves(runs), folder, name)


def editors_of(text: str, task: str) -> tuple[str, ...]:
    """Return the editors that `--editors` names: for `all`, those that edit a task's models.
    Raises CeditError for an unknown name."""
    if text == "all":
        return tuple(name for name, entry in EDITORS.items() if entry.edits(task))
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := [name for name in names if name not in EDITORS]:
        raise CeditError(
            f"There is no editor {', '.join(unknown)}: name some of {', '.join(EDITORS)}."
        )
    return names


def main() -> int:
    """Run the benchmark from the command line. A failure is one line on standard error."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    try:
        run(options)
    except CeditError as error:
        print(f"protocol: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
