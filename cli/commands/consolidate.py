"""`cedit consolidate`: the matrix edits in force, solved together as one patch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from cli.options import (
    common,
    editor_settings,
    find_store,
    require_writable,
    settings_option,
    with_workers,
)
from cli.output import Output, counted, rates, short

if TYPE_CHECKING:
    from continual.execution import Executor
    from continual.history.consolidating import ConsolidateResult

RATES = ("SR", "GR", "ER", "TrainR", "TestR", "Locality")


@click.command("consolidate")
@click.option(
    "--editor", metavar="NAME", help="The editor to solve with (that of most of these edits)."
)
@settings_option
@with_workers
@common
def command(
    out: Output,
    store: str | None,
    executor: Executor,
    editor: str | None,
    changes: tuple[str, ...],
) -> None:
    """Make one patch of all matrix edits in force.

    Each batch of memit, emmet, alphaedit or rome was solved on the model as the one before had left
    it. Here the values of all of their corrections in force are searched for anew, on the model
    without these edits, and solved in one batch; corrections that were superseded leave no columns.
    Settings are those of the latest such step, but for --set. The history only grows, by a revision
    that stands for all of these patches: `cedit rollback head~1` goes back.

    Nothing is changed if a correction cannot be written in the batch, or if one in force, by
    whatever editor, would break.

    With --json: {"type":"consolidate","revision","seq","editor","requests","replaced",
    "columns_before","columns","before","after","broke","recovered","fingerprint"}.

    \b
    Example:
      cedit consolidate
      cedit consolidate --editor memit --set memit.drift_max=0.2
    """
    path = find_store(store)
    require_writable(path)
    from continual.editors.chains import require_edits
    from continual.session import open_session

    with open_session(path, executor=executor) as session:
        if editor is not None:
            require_edits(editor, session.task.name)
        record = _record(session.consolidate(editor, editor_settings(changes)))
    out.result(record, *_text(record))


def _record(done: ConsolidateResult) -> dict[str, Any]:
    return {
        "type": "consolidate",
        "revision": done.revision.id,
        "seq": done.revision.seq,
        "editor": done.editor,
        "requests": list(done.requests),
        "replaced": list(done.replaced),
        "columns_before": done.columns[0],
        "columns": done.columns[1],
        "before": done.before,
        "after": done.after,
        "broke": list(done.turned.values()).count(False),
        "recovered": list(done.turned.values()).count(True),
        "fingerprint": done.revision.fingerprint,
    }


def _text(record: Mapping[str, Any]) -> Iterator[str]:
    corrections = counted(len(record["requests"]), "correction")
    yield f"{len(record['replaced'])} patches made one by {record['editor']}, for {corrections}"
    yield f"columns      {record['columns_before']} before, {record['columns']} now"
    yield f"before       {rates(record['before'], *RATES)}"
    yield f"after        {rates(record['after'], *RATES)}"
    probe_count = counted(record["broke"], "probe")
    yield f"{probe_count} broke, {record['recovered']} recovered"
    yield f"head {short(record['revision'])} (@{record['seq']})"
    yield f"fingerprint {short(record['fingerprint'])}"
