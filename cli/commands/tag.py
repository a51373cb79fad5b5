"""`cedit tag`: names for revisions."""

from __future__ import annotations

import click

from cli.options import common, find_store, revision_names
from cli.output import Output, columns, short


@click.command("tag")
@click.argument("name", required=False)
@click.argument("revision", shell_complete=revision_names, default="head")
@common
def command(out: Output, store: str | None, name: str | None, revision: str) -> None:
    """Name a revision, or list the tags.

    The revision is head unless named. A tag that exists moves.

    \b
    Example:
      cedit tag release-1
      cedit tag
    """
    from store import Store

    with Store.open(find_store(store), writable=name is not None) as opened:
        if name is not None:
            opened.tag(name, revision)
        tagged = {
            tag: opened.revision(identity)
            for tag, identity in opened.tags().items()
            if name in (None, tag)
        }
    for tag, found in tagged.items():
        out.record({"type": "tag", "tag": tag, "revision": found.id, "seq": found.seq})
    rows = [(tag, f"@{found.seq}", short(found.id)) for tag, found in tagged.items()]
    out.text(columns(("tag", "seq", "revision"), rows, right="seq"))
