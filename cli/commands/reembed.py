"""`cedit reembed`: embeds the memory's records by another encoder."""

from __future__ import annotations

import click

from cli.options import common, find_store
from cli.output import Output, counted, rates, short

RATES = ("SR", "GR", "ER", "TrainR", "TestR", "Locality")


@click.command("reembed")
@common
def command(out: Output, store: str | None) -> None:
    """Embed the memory anew, by the encoder and scope that cedit.toml names.

    This is needed once [memory] names another encoder or scope than the records were embedded by:
    until then the store refuses to answer from memory. The records and all other patches stay; a
    rollback undoes it.

    With --json: {"type":"reembed","revision","seq","records","scope","fingerprint"} and
    the metrics.

    \b
    Example:
      cedit reembed
    """
    from continual.history.inspection import rates_at
    from continual.history.reembedding import reembed
    from continual.session import open_session

    with open_session(find_store(store)) as session:
        outcome = reembed(session)
        metrics = rates_at(session.store, outcome.revision)
    record = {
        "type": "reembed",
        "revision": outcome.revision.id,
        "seq": outcome.revision.seq,
        "records": outcome.records,
        "scope": outcome.scope,
        **metrics,
        "fingerprint": outcome.revision.fingerprint,
    }
    out.result(
        record,
        f"{counted(outcome.records, 'record')} embedded anew by {short(outcome.scope)}",
        rates(metrics, *RATES),
        f"head {short(outcome.revision.id)}  fingerprint {short(outcome.revision.fingerprint)}",
    )
