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
        done = reembed(session)
        measured = rates_at(session.store, done.revision)
    record = {
        "type": "reembed",
        "revision": done.revision.id,
        "seq": done.revision.seq,
        "records": done.records,
        "scope": done.scope,
        **measured,
        "fingerprint": done.revision.fingerprint,
    }
    out.result(
        record,
        f"{counted(done.records, 'record')} embedded anew by {short(done.scope)}",
        rates(measured, *RATES),
        f"head {short(done.revision.id)}  fingerprint {short(done.revision.fingerprint)}",
    )
