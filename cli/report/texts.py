"""Single values as the page shows them. Texts from streams and models may hold anything.

Control characters and marks that turn the direction of writing are spelt out; text written from
right to left stands by itself, so that the text around it keeps its order; a long text is folded.
"""

from __future__ import annotations

import re

from cli.output import DASH, one_line
from cli.report.markup import Markup, element, join

SHOWN = 160  # characters of a text, before it is folded


def told(text: str) -> Markup:
    """Return a text that came from outside."""
    line = one_line(text)
    if len(line) <= SHOWN:
        return element("bdi", line)
    return element(
        "details",
        element("summary", element("bdi", f"{line[:SHOWN].rstrip()}…")),
        element("div", element("bdi", line), class_="whole"),
        class_="fold",
    )


def path(text: str) -> Markup:
    """Return a file's name from outside. Lines break behind its separators, not in its words."""
    parts = re.split(r"(?<=[/\\_-])|(?=#)", one_line(text))
    return element("bdi", *(join(part, element("wbr")) for part in parts[:-1]), parts[-1])


def identity(text: str, digits: int = 12) -> Markup:
    """Return the start of an id or a fingerprint; hovering shows the whole."""
    return element("span", text[:digits], class_="id", title=text)


def entry(seq: int | None) -> str:
    """Return an entry of the journal as commands name it."""
    return DASH if seq is None else f"@{seq}"


def count(number: int) -> str:
    """Return a number with commas."""
    return f"{number:,}"


def rate(value: float | None) -> str:
    """Return a rate; one that is not quite 1 never reads as 1."""
    if value is None:
        return DASH
    digits = f"{value:.3f}"
    return f"{min(value, 0.99999):.5f}" if digits == "1.000" and value < 1 else digits


def seconds(value: float | None) -> str:
    """Return a duration."""
    if value is None:
        return DASH
    if value < 1:
        return f"{value * 1000:.1f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"


def moment(iso: str | None) -> str:
    """Return a time of day in UTC, to the minute."""
    return DASH if iso is None else f"{one_line(iso)[:16].replace('T', ' ')} UTC"


def day(iso: str | None) -> Markup | str:
    """Return a date; hovering shows the time of day."""
    if iso is None:
        return DASH
    return element("span", one_line(iso)[:10], title=moment(iso))


def span(first: str | None, last: str | None) -> str:
    """Return the dates from one moment to another."""
    days = dict.fromkeys(one_line(iso)[:10] for iso in (first, last) if iso is not None)
    return " to ".join(days) or DASH


def setting(value: object) -> str:
    """Return a value of cedit.toml."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value)) or "[]"
    return str(value)
