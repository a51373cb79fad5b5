"""The corrections of the page: those in force, and what became of the others."""

from __future__ import annotations

from collections.abc import Sequence

from cli.output import DASH
from cli.report.markup import Markup, element, join
from cli.report.tables import (
    LONG,
    NAME,
    NUMBER,
    OPEN,
    TEXT,
    ReportColumn,
    folded,
    grouped,
    heading,
    note,
    table,
    titled,
)
from cli.report.texts import count, day, entry, path, span, told
from continual.reporting.corrections import (
    EDIT,
    Broken,
    Corrections,
    CorrectionText,
    Failed,
    InForce,
    Quarantined,
    Repaired,
    RevertedCorrection,
    Superseded,
)

ROLES = {
    "edit": "prompts",
    "rephrase": "learned rephrases",
    "held_out": "held-out rephrases",
    "locality": "locality probes",
    "portability": "portability probes",
    "train": "training probes",
    "test": "test probes",
    "watch": "positions of general text",
    "neighbour": "neighbours",
    "continuation": "positions behind answers",
}


def in_force(found: Corrections) -> Markup:
    """Return the table of the corrections that hold at head, the latest first."""
    rows = found.in_force
    remark = "The latest first."
    if len(rows) > OPEN:
        remark += (
            " Your browser's search finds them all; a browser that leaves folded rows out "
            "wants them opened first."
        )
    if any(row.request.target_old is None and row.began is None for row in rows):
        remark += (
            " “Before” is known where a request says it (target_old), or the history has the "
            "beginning of the model's answer."
        )
    body = folded(_IN_FORCE, rows, _fold_name) if rows else element("p", "None.", class_="none")
    head = heading("Corrections in force", len(rows))
    return element("section", head, note(remark if rows else ""), body)


def _fold_name(rows: Sequence[InForce]) -> str:
    oldest, newest = rows[-1], rows[0]
    dates = span(oldest.at, newest.at)
    return f"{len(rows):,} more, {entry(newest.seq)} to {entry(oldest.seq)}, {dates}"


_IN_FORCE: Sequence[ReportColumn[InForce]] = (
    ReportColumn("prompt", TEXT, lambda row: _prompt(row.request)),
    ReportColumn("before", TEXT, lambda row: _before(row)),
    ReportColumn("after", TEXT, lambda row: told(row.request.target_new)),
    ReportColumn("editor", NAME, lambda row: row.editor or DASH),
    ReportColumn("date", NAME, lambda row: day(row.at)),
    ReportColumn("at", NUMBER, lambda row: entry(row.seq)),
)


def _prompt(request: CorrectionText) -> Markup:
    """Return a prompt, behind thumbnails of the pictures that it shows."""
    pictures = (
        element("img", src=uri, alt="the picture that the prompt shows", class_="thumbnail")
        for uri in request.thumbnails
    )
    return join(*pictures, told(request.prompt))


def _before(row: InForce) -> Markup | str:
    """Return the answer before the edit, as the request says it or as the model began it."""
    if row.request.target_old is not None:
        return element("span", told(row.request.target_old), class_="old")
    if row.began is not None:
        title = "the first token of the model's answer before the edit"
        return element("span", told(f"{row.began}…"), class_="old", title=title)
    return DASH


def by_fate(found: Corrections) -> dict[str, Sequence[object]]:
    """Return the lists of corrections that are not simply in force, by their titles."""
    return {
        "Broken now": found.broken,
        "Failed": found.failed,
        "Quarantined": found.quarantined,
        "Repaired": found.repaired,
        "Superseded": found.superseded,
        "Reverted": found.reverted,
    }


def others(found: Corrections) -> Markup:
    """Return the tables of all other corrections, by what became of them."""
    tables = {
        "Broken now": table(_BROKEN, found.broken),
        "Failed": grouped(_FAILED, found.failed, lambda row: row.reason or DASH),
        "Quarantined": table(_QUARANTINED, found.quarantined),
        "Repaired": table(_REPAIRED, found.repaired),
        "Superseded": table(_SUPERSEDED, found.superseded),
        "Reverted": table(_REVERTED, found.reverted),
    }
    return element(
        "section",
        heading("What became of the others"),
        note(_standing(found)),
        note(_wrong(found)),
        *(titled(title, rows, tables[title]) for title, rows in by_fate(found).items() if rows),
    )


def _standing(found: Corrections) -> str:
    """Count the corrections as the tables list them."""
    lists = by_fate(found)
    empty_lists = [title.lower() for title, rows in lists.items() if not rows]
    counts = [f"{len(rows):,} {title.lower()}" for title, rows in lists.items() if rows]
    skipped = found.counts["skipped"]
    counts += [f"{skipped:,} right already"] if skipped else []
    parts = [", ".join(counts)] * bool(counts)
    parts += [f"none: {', '.join(empty_lists)}"] * bool(empty_lists)
    sentence = "; ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}."


def _wrong(found: Corrections) -> str:
    """Count the prompts and wordings that are answered wrongly at head."""
    failed = f" ({found.wrong_failed:,} of failed corrections)" if found.wrong_failed else ""
    mistakes = [
        f"{ROLES.get(role, role)} {number:,}{failed if role == EDIT else ''}"
        for role, number in found.wrong.items()
    ]
    if not mistakes:
        return "Everything measured is answered rightly at head."
    return f"Answered wrongly at head: {', '.join(mistakes)}."


_BROKEN: Sequence[ReportColumn[Broken]] = (
    ReportColumn("prompt", TEXT, lambda row: _prompt(row.request)),
    ReportColumn("target", TEXT, lambda row: told(row.request.target_new)),
    ReportColumn("editor", NAME, lambda row: row.editor or DASH),
    ReportColumn("applied", NUMBER, lambda row: entry(row.applied_seq)),
    ReportColumn("wrong since", NUMBER, lambda row: entry(row.since_seq)),
)
_REPAIRED: Sequence[ReportColumn[Repaired]] = (
    ReportColumn("prompt", TEXT, lambda row: _prompt(row.request)),
    ReportColumn("target", TEXT, lambda row: told(row.request.target_new)),
    ReportColumn("broke", NUMBER, lambda row: entry(row.broke_seq)),
    ReportColumn("right again", NUMBER, lambda row: entry(row.mended_seq)),
    ReportColumn("by", NAME, lambda row: row.by),
)
_FAILED: Sequence[ReportColumn[Failed]] = (
    ReportColumn("prompt", TEXT, lambda row: _prompt(row.request)),
    ReportColumn("target", TEXT, lambda row: told(row.request.target_new)),
    ReportColumn("at", NUMBER, lambda row: entry(row.seq)),
)
_QUARANTINED: Sequence[ReportColumn[Quarantined]] = (
    ReportColumn("record", TEXT, lambda row: told(row.raw)),
    ReportColumn("reason", LONG, lambda row: told(row.reason)),
    ReportColumn("stream", LONG, lambda row: path(row.stream or DASH)),
    ReportColumn("line", NUMBER, lambda row: DASH if row.line is None else count(row.line)),
)
_SUPERSEDED: Sequence[ReportColumn[Superseded]] = (
    ReportColumn("prompt", TEXT, lambda row: _prompt(row.request)),
    ReportColumn("target", TEXT, lambda row: told(row.request.target_new)),
    ReportColumn("new target", TEXT, lambda row: told(row.by.target_new if row.by else DASH)),
    ReportColumn("at", NUMBER, lambda row: entry(row.seq)),
)
_REVERTED: Sequence[ReportColumn[RevertedCorrection]] = (
    ReportColumn("prompt", TEXT, lambda row: _prompt(row.request)),
    ReportColumn("target", TEXT, lambda row: told(row.request.target_new)),
    ReportColumn("at", NUMBER, lambda row: entry(row.seq)),
)
