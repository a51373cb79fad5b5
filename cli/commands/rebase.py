"""`cedit rebase`: applies the corrections in force to another base model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import common, find_store, with_workers
from cli.output import Output, counted, one_line, rates, short
from cli.watching import watching

if TYPE_CHECKING:
    from continual.execution import Executor
    from continual.rebasing import Report
    from store import Store

PARTLY_DONE = 3


@click.command("rebase")
@click.argument("folder", metavar="[STORE2]", required=False)
@click.option("--model", required=True, help="The new base model: a directory, or atlas.")
@with_workers
@common
def command(
    out: Output, store: str | None, executor: Executor, folder: str | None, model: str
) -> int:
    """Apply the corrections in force to another model.

    The new model gets a store of its own, STORE2 (default: the store's name with -rebased), with
    the same probes and settings; the old store stays as it is. Prompts that the new model already
    answers rightly are not edited. The same command resumes a run that ended early; exit code 3
    means that some corrections failed.

    With --json there is a line for each step, as of `cedit apply`, and a last one,
    {"type":"rebase","store","model","requests","needed","right_already","failed","failures","SR",
    "GR","ER","TrainR","TestR","head","fingerprint"}.

    \b
    Example:
      cedit rebase --model ./gpt2-large
      cedit rebase --model ./gpt2-large corrections-large
    """
    from continual.embedded import embedded
    from continual.history.reports import step_record
    from continual.rebasing import groups, rebase, report
    from store import Store

    path = find_store(store)
    place = Path(folder) if folder else path.with_name(f"{path.name}-rebased")
    name = model if embedded(model) else str(Path(model).absolute())
    with Store.open(path) as source:
        total = sum(len(group.requests) for group in groups(source))
        with watching(out, 0, total) as watch:
            for step in rebase(source, place.absolute(), name, executor=executor):
                watch.take(step_record(step))
        with Store.open(place) as target:
            summary = report(source, target)
            record = _record(summary, target)
            failures = list(_failures(summary, source))
    out.result(
        record,
        one_line(f"Made {record['store']} for {record['model']}"),
        f"{counted(record['requests'], 'correction')}: {record['needed']} still needed, "
        f"{record['right_already']} right already, {record['failed']} failed",
        rates(record, "SR", "GR", "ER", "TrainR", "TestR"),
        *(one_line(f"failed: {f['prompt']} → {f['target_new']}: {f['reason']}") for f in failures),
        f"head {short(record['head'])}  fingerprint {short(record['fingerprint'])}",
    )
    return PARTLY_DONE if summary.failed else 0


def _record(found: Report, rebased: Store) -> dict[str, Any]:
    from continual.history.inspection import rates_at

    return {
        "type": "rebase",
        "store": str(rebased.path),
        "model": rebased.settings["model"]["path"],
        "requests": len(found.needed) + len(found.right_already) + len(found.failed),
        "needed": len(found.needed),
        "right_already": len(found.right_already),
        "failed": len(found.failed),
        "failures": [{"id": i, "reason": reason} for i, reason in found.failed.items()],
        **rates_at(rebased, rebased.head),
        "head": rebased.head_id,
        "fingerprint": rebased.head.fingerprint,
    }


def _failures(found: Report, source: Store) -> Iterator[dict[str, Any]]:
    from continual.prompts import shown_prompt

    for identity, reason in found.failed.items():
        request = source.request(identity)
        yield {**request, "prompt": shown_prompt(request), "reason": reason}
