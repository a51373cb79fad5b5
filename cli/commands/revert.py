"""`cedit revert`: takes one correction out of the middle of the history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import common, find_store, request_ids, require_writable, with_workers
from cli.output import Output, counted, one_line, rates, short

if TYPE_CHECKING:
    from continual.execution import Executor
    from continual.history.reverting import RevertResult
    from store import Store

RATES = ("SR", "GR", "ER", "TrainR", "TestR", "Locality")


@click.command("revert")
@click.argument("request", shell_complete=request_ids)
@click.option(
    "--resolve",
    is_flag=True,
    help="Solve its batch of weight edits again without it (default: drop its columns).",
)
@with_workers
@common
def command(
    out: Output, store: str | None, executor: Executor, request: str, resolve: bool
) -> None:
    """Take one correction out of the model.

    REQUEST is its id, or the start of it, as `cedit find` and `cedit list` print it. Its neurons,
    its records and its columns in a batch of weight edits go; all others stay, bit for bit. A
    fine-tuned patch goes whole; where other corrections share it, only --resolve helps. A
    correction that it had superseded counts again. The history only grows, and the correction can
    be applied again. An erasure of a relation (`cedit neurons --erase`) is named by its revision.

    With --json: {"type":"revert","revision","seq","request","prompt","target_new","relation",
    "removed","resolved","before","after","broke","recovered","fingerprint"}; request, prompt and
    target_new of an erasure are null.

    \b
    Example:
      cedit revert 3f0a61c2
      cedit revert 3f0a61c2 --resolve --json
      cedit revert @12
    """
    path = find_store(store)
    _require_request(path, request)
    require_writable(path)
    from continual.session import open_session

    with open_session(path, executor=executor) as session:
        record = _record(session.revert(request, resolve=resolve), session.store)
    out.result(record, *_text(record))


def _require_request(path: Path, name: str) -> None:
    """Raise NoStore or UnknownRequest, before the model is loaded."""
    from continual.history.corrections import standing_erasure, standing_request
    from store import Store

    with Store.open(path) as opened:
        if standing_erasure(opened, name) is None:
            standing_request(opened.lineage("head"), name)


def _record(done: RevertResult, store: Store) -> dict[str, Any]:
    from continual.prompts import shown_prompt

    request = store.request(done.request) if done.request else None
    return {
        "type": "revert",
        "revision": done.revision.id,
        "seq": done.revision.seq,
        "request": done.request,
        "prompt": shown_prompt(request) if request else None,
        "target_new": request["target_new"] if request else None,
        "relation": done.relation,
        "removed": done.rows,
        "resolved": [{"id": o.id, "outcome": o.outcome} for o in done.resolved],
        "before": done.before,
        "after": done.after,
        "broke": list(done.turned.values()).count(False),
        "recovered": list(done.turned.values()).count(True),
        "fingerprint": done.revision.fingerprint,
    }


def _text(record: Mapping[str, Any]) -> Iterator[str]:
    correction = f"{record['prompt']} → {record['target_new']}"
    erasure = f"the erasure of {record['relation']}"
    yield one_line(f"Reverted: {correction if record['request'] else erasure}")
    removals = ", ".join(f"{kind} {count}" for kind, count in record["removed"].items())
    yield f"removed      {removals or 'nothing: it had failed'}"
    if record["resolved"]:
        failures = sum(outcome["outcome"] == "failed" for outcome in record["resolved"])
        request_count = counted(len(record["resolved"]), "request")
        yield f"solved again {request_count} of its batches, {failures or 'none'} failed"
    yield f"before       {rates(record['before'], *RATES)}"
    yield f"after        {rates(record['after'], *RATES)}"
    probe_count = counted(record["broke"], "probe")
    yield f"{probe_count} broke, {record['recovered']} recovered"
    yield f"head {short(record['revision'])} (@{record['seq']})"
    yield f"fingerprint {short(record['fingerprint'])}"
