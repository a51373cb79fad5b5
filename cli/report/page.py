"""The page from top to bottom: title, rates, curves, corrections, branches, costs, settings.

Knows the order of the parts and their words; takes the facts from a `HistoryReport`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from cli.output import DASH, size
from cli.report import charts, corrections
from cli.report.markup import Markup, element, join
from cli.report.tables import (
    NAME,
    NUMBER,
    ReportColumn,
    anchor,
    heading,
    note,
    pairs,
    table,
)
from cli.report.texts import (
    count,
    entry,
    identity,
    moment,
    path,
    rate,
    seconds,
    setting,
    span,
    told,
)
from continual.reporting import (
    Branch,
    EditorCost,
    HistoryReport,
    StepCosts,
    StepTime,
    StoreSizes,
    Title,
)

GENERATOR = '<meta name="generator" content="cedit report">'
"""A mark near the beginning of every page: it tells that cedit wrote the file."""

MEANINGS = {
    "ER": ("Earlier corrections", "that are still right"),
    "SR": ("Right at once", "straight after its own step"),
    "GR": ("Other wordings", "that no edit has seen, right straight after the step"),
    "TestR": ("Test answers", "right now, against the base"),
    "TrainR": ("Training answers", "right now, against the base"),
    "Locality": ("Neighbouring facts", "answered as before their edit"),
    "Watch": ("General text", "goes on as in the base"),
    "Neighbours": ("Neighbouring prompts", "answered as before their edit"),
    "Continuation": ("Behind the answers", "the text goes on as before"),
    "Fluency": ("Fluency", "entropy of free text, against the base"),
}


def page(report: HistoryReport, version: str) -> str:
    """Return the whole HTML document; `version` is that of cedit."""
    title = report.title
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup(GENERATOR),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title.model}, {title.revisions:,} revisions"),
        element("style", Markup(files("cli.report").joinpath("style.css").read_text("utf-8"))),
    )
    main = element("main", *_parts(report), _footer(title, version))
    document = element("html", head, element("body", main), lang="en")
    return f"<!doctype html>\n{document}\n"


def _parts(report: HistoryReport) -> Iterator[Markup]:
    yield _header(report.title)
    if report.warnings:
        yield _warnings(report.warnings)
    yield _figures(report.rates.to_json())
    yield _contents(report)
    yield _curves(report)
    yield corrections.in_force(report.corrections)
    yield corrections.others(report.corrections)
    if report.branches:
        yield _rolled_back(report.branches)
    yield _time(report.steps, report.title.revisions)
    yield _costs(report.editors, report.sizes)
    yield _settings(report.settings)


# -- the history's name and place


def _header(title: Title) -> Markup:
    facts: list[tuple[str, Markup | str]] = [
        ("Corrections in force", count(title.active)),
        ("Failed", count(title.failed)),
        ("Head", join(entry(title.seq), " ", identity(title.head))),
        ("Steps from base to head", count(title.revisions)),
        ("Entries of the journal", count(title.entries)),
        ("Task", told(title.task)),
        ("Fingerprint of the model", identity(title.fingerprint)),
        ("Fingerprint of base", identity(title.base)),
        ("First step", moment(title.first_at)),
        ("Last step", moment(title.last_at)),
    ]
    if title.tags:
        facts.append(("Tags", told(", ".join(title.tags))))
    return element(
        "header",
        element("div", "Editing history of", class_="kind"),
        element("h1", told(title.model)),
        element("dl", *(_fact(name, value) for name, value in facts), class_="facts"),
    )


def _contents(report: HistoryReport) -> Markup:
    """Return links to the parts of the page, with the numbers of their rows."""
    lists: dict[str, Sequence[object]] = {
        "Corrections in force": report.corrections.in_force,
        **corrections.by_fate(report.corrections),
        "Rolled back": report.branches,
    }
    parts = [(title, f" {len(rows):,}") for title, rows in lists.items() if rows]
    parts += [(title, "") for title in ("Time", "Editors and sizes", "Settings")]
    return element(
        "nav",
        *(
            element("a", title, element("span", number, class_="count"), href=f"#{anchor(title)}")
            for title, number in parts
        ),
    )


def _fact(name: str, value: Markup | str) -> Markup:
    return element("div", element("dt", name), element("dd", value))


def _footer(title: Title, version: str) -> Markup:
    command = element("code", "cedit report")
    line = join("Made by ", command, f" of cedit {version}, {moment(title.made_at)}, of the store ")
    return element("footer", line, path(title.store), ".")


def _warnings(warnings: Sequence[str]) -> Markup:
    return element("section", *(element("p", warning) for warning in warnings), class_="warnings")


# -- its rates


def _figures(rates: Mapping[str, float | None]) -> Markup:
    measured_names = [name for name in MEANINGS if rates[name] is not None]
    other_names = ", ".join(
        f"{MEANINGS[n][0].lower()} ({n})" for n in MEANINGS if n not in measured_names
    )
    return join(
        element("section", *(_figure(n, rates[n]) for n in measured_names), class_="figures"),
        note(f"Not measured here: {other_names}." if other_names else ""),
    )


def _figure(name: str, value: float | None) -> Markup:
    title, meaning = MEANINGS[name]
    return element(
        "div",
        element("div", rate(value), class_="value"),
        element("div", charts.swatch(name), title, class_="name"),
        element("div", meaning, " ", element("span", name, class_="short"), class_="means"),
        class_="figure",
    )


def _curves(report: HistoryReport) -> Markup:
    figure = charts.metrics(report)
    title, recheck_count = report.title, sum(point.place > 0 for point in report.points)
    remark = (
        f"All probes are measured again after a step: after {recheck_count:,} of the "
        f"{title.revisions:,} on the way to head. Point at the chart for a step's numbers."
    )
    if figure is None:
        remark = "Nothing was measured after an edit yet."
    return element("section", heading("From base to head"), note(remark), figure)


# -- branches


def _rolled_back(branches: Sequence[Branch]) -> Markup:
    latest = branches[::-1]
    command = element("code", f"cedit rollback {entry(latest[0].last_seq)}")
    remark = join("Nothing of them is erased: ", command, " goes to the end of the latest.")
    return element(
        "section",
        heading("Rolled back", len(branches)),
        element("p", remark, class_="note"),
        table(_BRANCHES, latest),
    )


_BRANCHES: Sequence[ReportColumn[Branch]] = (
    ReportColumn("steps", NAME, lambda row: f"{entry(row.first_seq)} to {entry(row.last_seq)}"),
    ReportColumn("after", NUMBER, lambda row: entry(row.fork_seq)),
    ReportColumn("editors", NAME, lambda row: _names(row.editors)),
    ReportColumn("applied", NUMBER, lambda row: count(row.applied)),
    ReportColumn("failed", NUMBER, lambda row: count(row.failed)),
    ReportColumn("earlier right", NUMBER, lambda row: rate(row.rates.ER)),
    ReportColumn("test answers", NUMBER, lambda row: rate(row.rates.TestR)),
    ReportColumn("date", NAME, lambda row: span(row.first_at, row.last_at)),
    ReportColumn("left at", NUMBER, lambda row: entry(row.left_seq)),
    ReportColumn("tags", NAME, lambda row: told(", ".join(row.tags)) if row.tags else DASH),
)


# -- its costs


def _time(steps: StepCosts, revisions: int) -> Markup:
    slowest = table(_SLOWEST, steps.slowest) if steps.slowest else None
    return element(
        "section",
        heading("Time"),
        note(_timed(steps)),
        charts.durations(steps.times, revisions),
        slowest and join(element("h3", "Slowest steps"), slowest),
    )


def _timed(steps: StepCosts) -> str:
    """Say how many of the steps have known durations, and the sum of these."""
    if not steps.total:
        return "No step was made yet."
    if steps.seconds is None:
        return "The steps of this history were made before durations were kept."
    scope = "" if steps.timed == steps.total else f" of {steps.total:,}, those with durations"
    return f"{steps.timed:,} steps{scope}: {seconds(steps.seconds)}, commits not counted."


_SLOWEST: Sequence[ReportColumn[StepTime]] = (
    ReportColumn("step", NAME, lambda row: join(entry(row.seq), " ", identity(row.revision))),
    ReportColumn("editor", NAME, lambda row: _names(row.editors)),
    ReportColumn("edits", NUMBER, lambda row: count(row.edits)),
    ReportColumn("edit", NUMBER, lambda row: seconds(row.edit_s)),
    ReportColumn("new probes", NUMBER, lambda row: seconds(row.probe_s)),
    ReportColumn("re-check", NUMBER, lambda row: seconds(row.recheck_s)),
    ReportColumn("all", NUMBER, lambda row: seconds(row.total_s)),
    ReportColumn("patch", NUMBER, lambda row: size(row.patch_bytes)),
)
_EDITORS: Sequence[ReportColumn[EditorCost]] = (
    ReportColumn("editor", NAME, lambda row: _names(row.editors)),
    ReportColumn("steps", NUMBER, lambda row: count(row.steps)),
    ReportColumn("edits", NUMBER, lambda row: count(row.edits)),
    ReportColumn("time", NUMBER, lambda row: seconds(row.edit_s)),
    ReportColumn("per edit", NUMBER, lambda row: seconds(_each(row.edit_s, row.timed_edits))),
    ReportColumn("patches", NUMBER, lambda row: size(row.patch_bytes)),
    ReportColumn("per edit", NUMBER, lambda row: size(round(row.patch_bytes / row.edits))),
)


def _each(total: float | None, parts: int) -> float | None:
    return None if total is None or not parts else total / parts


def _names(editors: Sequence[str]) -> Markup | str:
    return told(" + ".join(editors)) if editors else DASH


def _costs(editors: Sequence[EditorCost], sizes: StoreSizes) -> Markup:
    editor_table = table(_EDITORS, editors) if editors else element("p", "None yet.", class_="none")
    return element(
        "section",
        heading("Editors and sizes"),
        element("h3", "Editors"),
        editor_table,
        element("h3", "On the disk"),
        pairs(_on_disk(sizes)),
    )


def _on_disk(sizes: StoreSizes) -> Iterator[tuple[str, str]]:
    yield "journal", size(sizes.journal)
    patches = f"{count(sizes.patch_count)} files, {size(sizes.patches)}"
    if sizes.patch_median is not None and sizes.patch_largest is not None:
        median, largest = size(round(sizes.patch_median)), size(sizes.patch_largest)
        patches += f"; median {median}, largest {largest}"
    yield "patches", patches
    if sizes.unnamed_patches:
        yield "patches that nothing names", f"{size(sizes.unnamed_patches)}: see cedit gc"
    yield "snapshots", size(sizes.snapshots)
    yield "cache", size(sizes.cache)
    yield "quarantine", size(sizes.quarantine)


# -- its settings


def _settings(settings: Mapping[str, Any]) -> Markup:
    """Return cedit.toml's tables, nested ones under their whole names."""
    return element(
        "section",
        heading("Settings"),
        element("details", element("summary", "cedit.toml"), *_tables(settings, ()), class_="part"),
    )


def _tables(table_: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[Markup]:
    values = {k: v for k, v in table_.items() if not isinstance(v, Mapping)}
    if values:
        name = f"[{'.'.join(place)}]" if place else "cedit.toml"
        yield element("h3", element("code", told(name)))
        yield pairs((told(key), told(setting(value))) for key, value in values.items())
    for key, value in table_.items():
        if isinstance(value, Mapping):
            yield from _tables(value, (*place, key))
