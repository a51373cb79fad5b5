"""`cedit export`: writes the whole history to one file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from cli.options import common, find_store
from cli.output import Output, counted, short, size


@click.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@common
def command(out: Output, store: str | None, file: Path) -> None:
    """Write the whole history to one file.

    The file is a tar archive with a checksum for each part. It has all revisions, rolled back ones
    too, the patches, pictures, the quarantine and the settings, but not the base model, the cache
    or the snapshots. The same history gives the same bytes.

    With --json: {"type":"archive","file","revisions","patches","head","fingerprint",
    "length","pictures"}.

    \b
    Example:
      cedit export corrections.tar
      cedit import corrections.tar elsewhere
    """
    from store import Store
    from store.archive import export

    with Store.open(find_store(store)) as opened:
        bundle = export(opened, file)
    out.result(
        {"type": "archive", "file": str(file), **asdict(bundle)},
        f"{counted(bundle.revisions, 'revision')}, {bundle.patches} patches, {size(bundle.length)}",
        f"head {short(bundle.head)}  fingerprint {short(bundle.fingerprint)}",
    )
