"""The person behind a request to the dashboard, and the rights that pages and forms ask for."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Path, Request
from fastapi.responses import RedirectResponse, Response

from cli.server.access import Served
from cli.server.dashboard.forms import Form, form_of
from cli.server.dashboard.sessions import Sessions, Visitor, require_mark
from cli.server.problems import ApiProblem
from continual.serving.tokens import Role

Number = Annotated[int, Path(ge=1, le=10**9)]
_SEE_OTHER = 303


def sessions_of(request: Request) -> Sessions:
    """Return the logins of a request's application."""
    sessions = request.app.state.sessions
    assert isinstance(sessions, Sessions)
    return sessions


def visitor_of(request: Request, service: Served) -> Visitor:
    """Return the person who makes a request."""
    return sessions_of(request).visitor(request, service)


Person = Annotated[Visitor, Depends(visitor_of)]
Sent = Annotated[Form, Depends(form_of)]


def require(visitor: Visitor, role: Role, form: Form | None = None) -> None:
    """Refuse a person without the rights of a role, and a form that is not from our pages. Raises
    ApiProblem."""
    if not visitor.may(role):
        raise ApiProblem(403 if visitor.is_known else 401, f"This needs the role {role.name}.")
    if form is not None:
        require_mark(visitor, form["mark"])


def to(path: str, message: str = "") -> Response:
    """Send a browser to a page, with a message."""
    return RedirectResponse(path + (f"?message={quote(message)}" if message else ""), _SEE_OTHER)
