"""The page from top to bottom: title, rates, curves, outcomes of the corrections, costs, settings.

Knows the order of the parts and their words; takes the facts from a `HistoryReport`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from cli.output import DASH, size
from cli.report import charts
from cli.report.markup import Markup, element, join
from cli.report.tables import NAME, NUMBER, TEXT, Column, listed, pairs, table
from cli.report.texts import count, entry, identity, moment, rate, seconds, setting, told
from continual.reporting import (
    EditorCost,
    HistoryReport,
    Steps,
    StepTime,
    StoreSizes,
    Title,
)
from continual.reporting.corrections import (
    Broken,
    Corrections,
    Failed,
    Quarantined,
    Repaired,
    Reverted,
    Superseded,
)

GENERATOR = '<meta name="generator" content="cedit report">'
"""A mark near the beginning of every page: it tells that cedit wrote the file."""

MEANINGS = {
    "SR": "right straight after the edit",
    "GR": "held-out rephrases right straight after it",
    "ER": "earlier edits right now",
    "TrainR": "training probes, now over base",
    "TestR": "test probes, now over base",
    "Locality": "neighbouring facts as before their edit",
    "Watch": "held-out general text, as the base goes on",
    "Neighbours": "held-out neighbours as before their edit",
    "Continuation": "behind the answers, as before their edit",
    "Fluency": "entropy of free continuations, over the base's",
}
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
    yield _curves(report)
    yield _corrections(report.corrections)
    yield _time(report.steps, report.title.revisions)
    yield _costs(report.editors, report.sizes)
    yield _settings(report.settings)


# -- the history's name and place


def _header(title: Title) -> Markup:
    facts: list[tuple[str, Markup | str]] = [
        ("Corrections in force", count(title.active)),
        ("Revisions from base", f"{count(title.revisions)} of {count(title.entries)} entries"),
        ("Head", join(identity(title.head), f" ({entry(title.seq)})")),
        ("Fingerprint of the model", identity(title.fingerprint)),
        ("Fingerprint of base", identity(title.base)),
        ("Task", told(title.task)),
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


def _fact(name: str, value: Markup | str) -> Markup:
    return element("div", element("dt", name), element("dd", value))


def _footer(title: Title, version: str) -> Markup:
    where = join("cedit ", version, " made this page of ", told(title.store))
    return element("footer", where, f", {moment(title.made_at)}.")


def _warnings(warnings: Sequence[str]) -> Markup:
    return element("section", *(element("p", warning) for warning in warnings), class_="warnings")


# -- its rates


def _figures(rates: Mapping[str, float | None]) -> Markup:
    return element("section", *(_figure(n, rates[n]) for n in MEANINGS), class_="figures")


def _figure(name: str, value: float | None) -> Markup:
    return element(
        "div",
        element("div", charts.swatch(name), name, class_="name"),
        element("div", rate(value), class_="value unknown" if value is None else "value"),
        element("div", MEANINGS[name], class_="means"),
        class_="figure",
    )


def _curves(report: HistoryReport) -> Markup:
    figure = charts.metrics(report)
    title, recheck_count = report.title, sum(point.place > 0 for point in report.points)
    note = (
        f"All probes, measured again after {recheck_count:,} of the {title.revisions:,} revisions."
    )
    if figure is None:
        note = "Nothing was measured after an edit yet."
    return element("section", element("h2", "Over the revisions"), _note(note), figure)


def _note(text: str) -> Markup | None:
    return element("p", text, class_="note") if text else None


# -- the outcomes of the corrections


def _corrections(found: Corrections) -> Markup:
    counts = ", ".join(f"{number:,} {name}" for name, number in found.counts.items())
    mistakes = ", ".join(f"{n:,} {ROLES.get(role, role)}" for role, n in found.wrong.items())
    return element(
        "section",
        element("h2", "Corrections"),
        _note(f"{counts}, {len(found.quarantined):,} quarantined."),
        _note(f"Wrong at head: {mistakes or 'nothing'}."),
        listed("Broken now", _BROKEN, found.broken, "Every applied edit is right at head."),
        listed("Repaired", _REPAIRED, found.repaired, "No edit was broken and mended again."),
        listed("Failed", _FAILED, found.failed, "No correction in force has failed."),
        listed("Quarantined", _QUARANTINED, found.quarantined, "Every record could be read."),
        listed("Superseded", _SUPERSEDED, found.superseded, "No correction took another's place."),
        listed("Reverted", _REVERTED, found.reverted, "Nothing was taken out of the history."),
    )


_BROKEN: Sequence[Column[Broken]] = (
    Column("prompt", TEXT, lambda row: told(row.request.prompt)),
    Column("target", TEXT, lambda row: told(row.request.target_new)),
    Column("editor", NAME, lambda row: row.editor or DASH),
    Column("applied", NUMBER, lambda row: entry(row.applied_seq)),
    Column("wrong since", NUMBER, lambda row: entry(row.since_seq)),
)
_REPAIRED: Sequence[Column[Repaired]] = (
    Column("prompt", TEXT, lambda row: told(row.request.prompt)),
    Column("target", TEXT, lambda row: told(row.request.target_new)),
    Column("broke", NUMBER, lambda row: entry(row.broke_seq)),
    Column("right again", NUMBER, lambda row: entry(row.mended_seq)),
    Column("by", NAME, lambda row: row.by),
)
_FAILED: Sequence[Column[Failed]] = (
    Column("prompt", TEXT, lambda row: told(row.request.prompt)),
    Column("target", TEXT, lambda row: told(row.request.target_new)),
    Column("reason", TEXT, lambda row: told(row.reason or DASH)),
    Column("at", NUMBER, lambda row: entry(row.seq)),
)
_QUARANTINED: Sequence[Column[Quarantined]] = (
    Column("record", TEXT, lambda row: told(row.raw)),
    Column("reason", TEXT, lambda row: told(row.reason)),
    Column("stream", TEXT, lambda row: told(row.stream or DASH)),
    Column("line", NUMBER, lambda row: DASH if row.line is None else count(row.line)),
)
_SUPERSEDED: Sequence[Column[Superseded]] = (
    Column("prompt", TEXT, lambda row: told(row.request.prompt)),
    Column("target", TEXT, lambda row: told(row.request.target_new)),
    Column("new target", TEXT, lambda row: told(row.by.target_new if row.by else DASH)),
    Column("at", NUMBER, lambda row: entry(row.seq)),
)
_REVERTED: Sequence[Column[Reverted]] = (
    Column("prompt", TEXT, lambda row: told(row.request.prompt)),
    Column("target", TEXT, lambda row: told(row.request.target_new)),
    Column("at", NUMBER, lambda row: entry(row.seq)),
)


# -- its costs


def _time(steps: Steps, revisions: int) -> Markup:
    slowest = table(_SLOWEST, steps.slowest) if steps.slowest else None
    return element(
        "section",
        element("h2", "Time"),
        _note(_timed(steps)),
        charts.durations(steps.times, revisions),
        slowest and join(element("h3", "Slowest steps"), slowest),
    )


def _timed(steps: Steps) -> str:
    """Say how many of the steps have known durations, and the sum of these."""
    if not steps.total:
        return "No step was made yet."
    if steps.seconds is None:
        return "The steps of this history were made before durations were kept."
    scope = "" if steps.timed == steps.total else f" of {steps.total:,}, those with durations"
    return f"{steps.timed:,} steps{scope}: {seconds(steps.seconds)}, commits not counted."


_SLOWEST: Sequence[Column[StepTime]] = (
    Column("step", NAME, lambda row: join(entry(row.seq), " ", identity(row.revision))),
    Column("editor", NAME, lambda row: _names(row.editors)),
    Column("edits", NUMBER, lambda row: count(row.edits)),
    Column("edit", NUMBER, lambda row: seconds(row.edit_s)),
    Column("new probes", NUMBER, lambda row: seconds(row.probe_s)),
    Column("re-check", NUMBER, lambda row: seconds(row.recheck_s)),
    Column("all", NUMBER, lambda row: seconds(row.total_s)),
    Column("patch", NUMBER, lambda row: size(row.patch_bytes)),
)
_EDITORS: Sequence[Column[EditorCost]] = (
    Column("editor", NAME, lambda row: _names(row.editors)),
    Column("steps", NUMBER, lambda row: count(row.steps)),
    Column("edits", NUMBER, lambda row: count(row.edits)),
    Column("time", NUMBER, lambda row: seconds(row.edit_s)),
    Column("per edit", NUMBER, lambda row: seconds(_each(row.edit_s, row.timed_edits))),
    Column("patches", NUMBER, lambda row: size(row.patch_bytes)),
    Column("per edit", NUMBER, lambda row: size(round(row.patch_bytes / row.edits))),
)


def _each(total: float | None, parts: int) -> float | None:
    return None if total is None or not parts else total / parts


def _names(editors: Sequence[str]) -> Markup | str:
    return told(" + ".join(editors)) if editors else DASH


def _costs(editors: Sequence[EditorCost], sizes: StoreSizes) -> Markup:
    editor_table = table(_EDITORS, editors) if editors else element("p", "None yet.", class_="none")
    return element(
        "section",
        element("h2", "Editors and sizes"),
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
    return element("section", element("h2", "Settings"), *_tables(settings, ()))


def _tables(table_: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[Markup]:
    values = {k: v for k, v in table_.items() if not isinstance(v, Mapping)}
    if values:
        name = f"[{'.'.join(place)}]" if place else "cedit.toml"
        yield element("h3", element("code", told(name)))
        yield pairs((told(key), told(setting(value))) for key, value in values.items())
    for key, value in table_.items():
        if isinstance(value, Mapping):
            yield from _tables(value, (*place, key))
