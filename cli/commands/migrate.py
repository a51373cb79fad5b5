"""`cedit migrate`: brings an older store to the format of this version."""

from __future__ import annotations

import click

from cli.options import common, find_store
from cli.output import Output, one_line


@click.command("migrate")
@common
def command(out: Output, store: str | None) -> None:
    """Bring an older store to this version's format.

    The settings and the journal are first copied to the store's folder `backup`. A store of a newer
    format is refused (exit code 12). A store that has this version's format is left alone.

    With --json: {"type":"migration","store","before","after","changes","backup"}.

    \b
    Example:
      cedit migrate
      cedit migrate --store corrections --json
    """
    from store.migrate import migrate

    path = find_store(store)
    migration = migrate(path)
    record = {
        "type": "migration",
        "store": str(path),
        "before": migration.before,
        "after": migration.after,
        "changes": list(migration.changes),
        "backup": None if migration.backup is None else str(migration.backup),
    }
    lines = [
        f"format {migration.before} → {migration.after}: {change}" for change in migration.changes
    ]
    if migration.backup is None:
        lines = [f"The store has format {migration.after} already."]
    else:
        lines.append(one_line(f"What was there before is kept in {migration.backup}"))
    out.result(record, *lines)
