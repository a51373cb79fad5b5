"""`cedit gc`: removes unused files from a store's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.asking import confirmed
from cli.options import common, find_store
from cli.output import Output, columns, counted, size

if TYPE_CHECKING:
    from store import Store
    from store.gc import Garbage


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--cache", is_flag=True, help="Empty the cache and the snapshots too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def command(out: Output, store: str | None, dry_run: bool, cache: bool, yes: bool) -> None:
    """Remove files that nothing refers to.

    They are patches that no revision uses, leftovers of interrupted writes, and snapshots on the
    way to neither head nor a tag. No revision is lost, not even one that was rolled back. With
    --cache the files that can be made again go too: the key statistics are then collected anew.

    With --dry-run the command also looks at a store that another process writes to, or that may
    only be read; files touched within the hour may be in use there, and are not counted.

    With --json there is a line for each file, {"type":"garbage","path","bytes","why"}, and a last
    one, {"type":"summary","files","bytes","removed"}.

    \b
    Example:
      cedit gc --dry-run
      cedit gc --yes
    """
    from store.gc import collect, find

    with _opened(find_store(store), dry_run) as opened:
        files = find(opened, with_cache=cache)
        _show(out, files, opened)
        total = counted(len(files), "file"), size(sum(garbage.length for garbage in files))
        is_removed = bool(files) and not dry_run
        if is_removed and confirmed(f"Remove {total[0]}, {total[1]}?", yes, "--yes or --dry-run"):
            collect(opened, files)
    record = {
        "type": "summary",
        "files": len(files),
        "bytes": sum(garbage.length for garbage in files),
        "removed": is_removed,
    }
    verdict = f"{total[0]}, {total[1]}, {'removed' if is_removed else 'could go'}."
    out.result(record, verdict if files else "Nothing to remove.")


def _opened(path: Path, dry_run: bool) -> Store:
    """Open the store for writing; for a dry run, for reading if it cannot be written to."""
    from store import Store, StoreError

    try:
        return Store.open(path, writable=True)
    except StoreError:
        if not dry_run:
            raise
    return Store.open(path)


def _show(out: Output, found: Sequence[Garbage], store: Any) -> None:
    paths = [garbage.path.relative_to(store.path).as_posix() for garbage in found]
    for path, garbage in zip(paths, found, strict=True):
        out.record({"type": "garbage", "path": path, "bytes": garbage.length, "why": garbage.why})
    rows = [
        (size(garbage.length), path, garbage.why)
        for path, garbage in zip(paths, found, strict=True)
    ]
    if rows:
        out.text(columns(("size", "file", "why"), rows, right="size"))
