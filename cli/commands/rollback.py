"""`cedit rollback`: moves head to another revision, and the model with it."""

from __future__ import annotations

import click

from cli.options import common, find_store, require_revision, require_writable, revision_names
from cli.output import Output, short


@click.command("rollback")
@click.argument("revision", shell_complete=revision_names)
@common
def command(out: Output, store: str | None, revision: str) -> None:
    """Move head to another revision.

    The model then equals, bit for bit, the model of that revision. Nothing is erased; the same
    command goes forward again.

    \b
    Example:
      cedit rollback head~1
      cedit rollback base
    """
    path = find_store(store)
    require_revision(path, revision)
    require_writable(path)
    from continual.session import open_session

    with open_session(path, at=revision) as session:
        origin = session.store.head
        target = session.rollback(revision)
        fingerprint = session.edited.fingerprint
    record = {
        "type": "rollback",
        "from": origin.id,
        "to": target.id,
        "seq": target.seq,
        "fingerprint": fingerprint,
    }
    out.result(
        record,
        f"head {short(origin.id)} (@{origin.seq}) → {short(target.id)} (@{target.seq})",
        f"fingerprint {short(fingerprint)}",
        f"Nothing was erased. To go forward again: cedit rollback {short(origin.id)}",
    )
