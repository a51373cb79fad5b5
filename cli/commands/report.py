"""`cedit report`: writes the whole history as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import common, find_store
from cli.output import Output, counted, size

if TYPE_CHECKING:
    from continual.reporting import HistoryReport

DEFAULT = Path("report.html")
_BEGINNING = 1024  # bytes in which a page of ours says that it is one


@click.command("report")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"Where the page goes (default: {DEFAULT}; with --json, nowhere).",
)
@click.option("--force", is_flag=True, help="Replace a file that is no report.")
@common
def command(out: Output, store: str | None, output: Path | None, force: bool) -> None:
    """Write a page about the whole history.

    The page is one HTML file that needs no network, no script and no other file. It has the metrics
    at head and over the revisions; the corrections in force, with the answers before and after;
    the broken, failed, quarantined, mended, superseded and reverted ones; the branches that were
    rolled back; the slowest steps, the cost of each editor, sizes, and settings. The store may be
    written to meanwhile.

    An existing report is replaced; any other file only with --force.

    With --json the facts are printed as one object, and the page is written only with --output:
    {"type":"report","title":{"model","task","base","head","seq","fingerprint","revisions",
    "entries","active","failed","first_at","last_at","made_at","tags","streams",…},"rates":{"SR",…},
    "points":[{"place","seq","rates"}],"marks":[{"kind","place","seq","requests","left"}],
    "way":[{"place","seq","operation","editors","at","tags"}],
    "branches":[{"place","fork_seq","first_seq","last_seq","revisions","editors","applied","failed",
    "rates","first_at","last_at","left_seq","tags"}],
    "steps":{"total","timed","seconds","times":[{"seq","revision","editors","edits","edit_s",
    "probe_s","recheck_s","patch_bytes",…}],"slowest":[…]},"corrections":{"counts","wrong",
    "wrong_failed","in_force":[{"request","editor","seq","at","began"}],"broken","repaired","failed","superseded","reverted","quarantined"},"editors":[{"editors",
    "steps","edits","timed_edits","edit_s","patch_bytes"}],"sizes":{…},"settings":{…},
    "warnings":["…"]}.
    A place counts the steps from base; a seq is a number in the journal.

    \b
    Example:
      cedit report
      cedit report --output today.html
      cedit report --json
    """
    from continual.reporting import report_on
    from store import Store

    target = output or (None if out.as_json else DEFAULT)
    if target is not None:
        _require_replaceable(target, force)
    with Store.open(find_store(store)) as opened:
        report = report_on(opened)
    if target is not None:
        length = _write(report, target)
        title = report.title
        summary = f"{counted(title.revisions, 'revision')}, {counted(title.active, 'correction')}"
        out.text(f"{target}: {summary} in force, {size(length)}")
    out.record(report.to_json())


def _write(report: HistoryReport, target: Path) -> int:
    """Write the page, all of it or nothing; return its length in bytes."""
    from importlib.metadata import version

    from cli.report import page
    from store import write_durably

    data = page(report, version("cedit")).encode("utf-8")
    write_durably(target, data)
    return len(data)


def _require_replaceable(target: Path, force: bool) -> None:
    """Raise ClickException for a folder, and for a file that is no report unless `force`."""
    from cli.report import GENERATOR
    from store.errors import reading

    with reading(target):
        if target.is_dir():
            raise click.ClickException(f"{target} is a folder: name a file in it (--output).")
        if not target.exists() or force:
            return
        is_ours = False
        if target.is_file():
            with target.open("rb") as opened:
                is_ours = GENERATOR.encode("ascii") in opened.read(_BEGINNING)
    if not is_ours:
        raise click.ClickException(
            f"{target} is there, and no report of cedit's: name another file (--output), or "
            "replace it (--force)."
        )
