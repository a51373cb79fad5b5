"""Pages of templates: everything that is put into one is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from cli.output import DASH
from cli.server.dashboard.sessions import Visitor
from cli.server.service import Service
from continual.review.states import OPEN, STATES
from continual.serving.tokens import Role

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
STATIC = {"report.css": "text/css", "dashboard.css": "text/css", "dashboard.js": "text/javascript"}
_ID_DIGITS = 12
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("cli.server.dashboard"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": _short, "age": age, "rate": _rate, "minute": _minute}
    return environment


@cache
def static(name: str) -> bytes:
    """Return a file that the pages name."""
    package = "cli.report" if name == "report.css" else "cli.server.dashboard"
    place = "style.css" if name == "report.css" else f"static/{name}"
    return files(package).joinpath(place).read_bytes()


def shown(
    template: str, service: Service, visitor: Visitor, status: int = 200, **values: Any
) -> Response:
    """Return a page."""
    counts = service.queue.counts()
    about = {
        "model": service.name,
        "head": service.store.head,
        "visitor": visitor,
        "Role": Role,
        "mark": visitor.mark,
        "counts": counts,
        "states": STATES,
        "open_count": sum(counts[state] for state in OPEN),
        "page": template,
        "message": "",
    }
    text = _templates().get_template(f"{template}.html").render({**about, **values})
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
    return HTMLResponse(text, status, headers)


def part(template: str, visitor: Visitor, **values: Any) -> str:
    """Return a part of a page, for the script that puts it in its place."""
    about = {"visitor": visitor, "Role": Role, "mark": visitor.mark}
    return _templates().get_template(f"_{template}.html").render({**about, **values})


def age(at: str) -> str:
    """Return the time since a moment, in its largest unit."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()
    except (ValueError, TypeError):
        return DASH
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "now"


def _short(identity: str | None) -> str:
    return DASH if identity is None else identity[:_ID_DIGITS]


def _minute(at: str | None) -> str:
    return DASH if at is None else at[:16].replace("T", " ")


def _rate(value: Any) -> str:
    return DASH if value is None else f"{value:.3f}"


def measured(rates: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics that have a value."""
    return {name: value for name, value in rates.items() if value is not None}
