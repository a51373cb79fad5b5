"""`cedit tag`: names revisions, and lists and deletes the names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.options import common, find_store, revision_names
from cli.output import Output, columns, short

if TYPE_CHECKING:
    from store import Store


@click.command("tag")
@click.argument("name", required=False)
@click.argument("revision", shell_complete=revision_names, default="head")
@click.option("--delete", is_flag=True, help="Take the tag away; the revision stays.")
@click.option("--force", is_flag=True, help="Move a tag that is elsewhere.")
@common
def command(
    out: Output, store: str | None, name: str | None, revision: str, delete: bool, force: bool
) -> None:
    """Name a revision, or list the tags.

    The revision is head unless named. An existing tag stays where it is, unless --force moves it.

    With --json there is a line for each tag, {"type":"tag","tag","revision","seq"}; the line of a
    deleted tag has "deleted":true.

    \b
    Example:
      cedit tag release-1
      cedit tag
      cedit tag release-1 --delete
    """
    from store import Store

    if delete:
        _delete(out, store, name)
        return
    with Store.open(find_store(store), writable=name is not None) as opened:
        if name is not None:
            _require_free(opened, name, revision, force)
            opened.tag(name, revision)
        places = {
            tag: opened.revision(identity)
            for tag, identity in opened.tags().items()
            if name in (None, tag)
        }
    for tag, place in places.items():
        out.record({"type": "tag", "tag": tag, "revision": place.id, "seq": place.seq})
    rows = [(tag, f"@{place.seq}", short(place.id)) for tag, place in places.items()]
    out.text(columns(("tag", "seq", "revision"), rows, right="seq"))


def _require_free(store: Store, name: str, revision: str, force: bool) -> None:
    """Raise UsageError for a tag that would move without --force."""
    identity = store.tags().get(name)
    if identity is None or force or identity == store.revision(revision).id:
        return
    place = store.revision(identity)
    raise click.UsageError(
        f"{name} is @{place.seq} {short(identity)} already: --force moves it to {revision}."
    )


def _delete(out: Output, store: str | None, name: str | None) -> None:
    from store import Store

    if name is None:
        raise click.UsageError("Name the tag to delete.")
    with Store.open(find_store(store), writable=True) as opened:
        revision = opened.revision(opened.untag(name))
    record = {
        "type": "tag",
        "tag": name,
        "revision": revision.id,
        "seq": revision.seq,
        "deleted": True,
    }
    out.result(record, f"Deleted {name}, which was @{revision.seq} {short(revision.id)}")
