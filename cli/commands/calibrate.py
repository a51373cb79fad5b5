"""`cedit calibrate`: chooses the settings of editors for a base model, by measuring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import EditorChain, common, find_store, with_workers
from cli.output import Output, columns, rate
from cli.watching import listening

if TYPE_CHECKING:
    from rich.table import Table

    from continual.calibration import Calibrated
    from continual.execution import Executor
    from continual.session import Session

COLUMNS = ("arrives", "generalises", "general", "neighbours", "others", "score")


@click.command("calibrate")
@click.argument("source", metavar="[STREAM]", required=False)
@click.option(
    "--editor",
    type=EditorChain(),
    metavar="E[,E2]",
    help="The editors or chains to calibrate (default: auto).",
)
@click.option("--again", is_flag=True, help="Measure anew what is measured already.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw the evidence (a PNG, SVG or PDF; needs matplotlib).",
)
@with_workers
@common
def command(
    out: Output,
    store: str | None,
    executor: Executor,
    source: str | None,
    editor: str | None,
    again: bool,
    plot: Path | None,
) -> None:
    """Choose the settings of editors for this base model, by trying them.

    Some facts are written to the base model with one setting after another, and taken off again.
    The command measures the shares of facts that arrive, of other wordings that follow, and of
    general text, neighbours and other facts that stay. The facts come from the stream, or from the
    history, else from prompts cut out of the base's own text. Each trial is kept as it ends, so the
    same command resumes an interrupted run. A replay needs none of it, as every revision records
    the settings that it used.

    With --workers or --cluster the settings of an axis are tried side by side, one to a worker,
    with the same evidence and choice; the seconds of a trial are its worker's.

    An editor uses the chosen settings unless [editor.NAME] in cedit.toml sets others. A new store
    does all of this by itself when an editor is first used; [calibration] in cedit.toml has
    at_first_use, facts and stays_min.

    With --json there is a line for each editor: {"type":"calibration","editor","sample","trials",
    "chosen"}.

    \b
    Example:
      cedit calibrate corrections.jsonl --plot evidence.png
      cedit calibrate --editor memit --again
    """
    from continual.session import open_session

    with (
        open_session(find_store(store), executor=executor) as session,
        listening(out) as session.listener,
    ):
        names = _chosen(session, editor)
        calibrations: dict[str, Calibrated] = {}
        for state in session.calibrate(names, source, again=again):
            session.listener.progress(f"{state.editor}: trials", len(state.trials), 0)
            calibrations[state.editor] = state
    for calibrated in calibrations.values():
        record = {"type": "calibration", **calibrated.to_json()}
        out.result(record, *_told(calibrated), "")
    if plot is not None:
        from continual.calibration.plotting import draw

        draw(list(calibrations.values()), plot)
        out.note(f"drawn: {plot}")


def _chosen(session: Session, editor: str | None) -> list[str]:
    """Return the named editor, or the editors of a chain (default: auto) that offer settings.
    Raises CeditError if none does."""
    from continual.choices import CHAINS, EDITORS
    from continual.editors.chains import chain_of
    from continual.errors import CeditError

    chain = chain_of(editor or "auto", session.task.name)
    is_single = editor is not None and editor not in CHAINS
    names = [name for name in chain if is_single or EDITORS[name].grid]
    if not names:
        raise CeditError(f"No editor of {', '.join(chain)} offers settings to try.")
    return names


def _told(calibrated: Calibrated) -> Iterable[Any]:
    from continual.calibration.calibrating import told

    sample = calibrated.sample
    yield f"{calibrated.editor}: {sample['facts']} facts of {sample['source']}"
    yield _table(calibrated)
    lines = told(calibrated)
    yield "chosen:" if lines else "chosen: the defaults"
    yield from (f"  {line}" for line in lines)


def _table(calibrated: Calibrated) -> Table:
    rows = (
        [
            trial.axis,
            _settings(trial.evidence.settings),
            *(rate(trial.to_json()[name]) for name in COLUMNS),
            rate(trial.evidence.spent),
            f"{trial.evidence.seconds:.1f}",
        ]
        for trial in calibrated.trials
    )
    names = ["tried", "settings", *COLUMNS, "spent", "s"]
    return columns(names, rows, " ".join([*COLUMNS, "spent", "s"]))


def _settings(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())
