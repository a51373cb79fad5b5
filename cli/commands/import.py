"""`cedit import`: makes a store from an archive."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from cli.options import common
from cli.output import Output, counted, one_line, short


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", metavar="[STORE]", required=False)
@click.option("--model", type=click.Path(), help="Where the base model is here.")
@common
def command(
    out: Output, store: str | None, file: Path, folder: str | None, model: str | None
) -> None:
    """Make a store from an archive of `cedit export`.

    STORE is a new or empty folder (default: .cedit). Every part is checked before the store is
    made; the revisions keep their ids and fingerprints.

    With --json: {"type":"archive","file","store","revisions","patches","head","fingerprint",
    "length","pictures"}.

    \b
    Example:
      cedit import corrections.tar elsewhere
      cedit import corrections.tar elsewhere --model /models/gpt2
    """
    from store.archive import restore
    from store.store import FOLDER_NAME

    if folder and store:
        raise click.UsageError("Name the store once: as STORE or with --store.")
    place = Path(folder or store or FOLDER_NAME).absolute()
    archive = restore(file, place, model=None if model is None else str(Path(model).absolute()))
    out.result(
        {"type": "archive", "file": str(file), "store": str(place), **asdict(archive)},
        one_line(f"Made a store in {place}: {counted(archive.revisions, 'revision')}"),
        f"head {short(archive.head)}  fingerprint {short(archive.fingerprint)}",
        one_line(f"Next: cedit replay --store {place}"),
    )
