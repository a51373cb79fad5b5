"""Who has logged in at the dashboard: a cookie that leads to a token's name, in memory alone."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from fastapi import Request, Response

from cli.server.access import NOBODY
from cli.server.problems import ApiProblem
from cli.server.service import Service
from continual.serving.tokens import Role, Token

COOKIE = "cedit"
LASTS_S = 12 * 3600.0
SESSIONS_MAX = 1000
_BYTES = 24


@dataclass(frozen=True)
class _Login:
    token: str  # its name
    mark: str  # that forms send back
    until: float


@dataclass(frozen=True)
class Visitor:
    """A person at the dashboard."""

    token: Token
    mark: str = ""  # that this person's forms carry; empty for nobody

    @property
    def is_known(self) -> bool:
        """True for a person who has logged in."""
        return bool(self.mark)

    def may(self, role: Role) -> bool:
        """Tell whether this person has the rights of a role."""
        return self.token.rights >= role


class Sessions:
    """The logins of one server; any thread may use them."""

    def __init__(self) -> None:
        self._logins: OrderedDict[str, _Login] = OrderedDict()
        self._turn = threading.Lock()

    def begin(self, token: Token) -> str:
        """Begin a session; return its cookie."""
        identity = secrets.token_urlsafe(_BYTES)
        login = _Login(token.name, secrets.token_urlsafe(_BYTES), time.time() + LASTS_S)
        with self._turn:
            self._logins[identity] = login
            while len(self._logins) > SESSIONS_MAX:
                self._logins.popitem(last=False)
        return identity

    def end(self, request: Request) -> None:
        """End the session of a request."""
        with self._turn:
            self._logins.pop(request.cookies.get(COOKIE, ""), None)

    def token_of(self, cookie: str) -> str | None:
        """Return the name of the token that a cookie leads to; None for any other cookie."""
        with self._turn:
            login = self._logins.get(cookie)
        return None if login is None or login.until <= time.time() else login.token

    def visitor(self, request: Request, service: Service) -> Visitor:
        """Return the person who makes a request. Without a login, or with a token that was removed
        since, it is anyone."""
        with self._turn:
            login = self._logins.get(request.cookies.get(COOKIE, ""))
        if login is not None and login.until > time.time():
            for token in service.tokens.tokens:
                if token.name == login.token:
                    return Visitor(token, login.mark)
        return Visitor(NOBODY)


def require_mark(visitor: Visitor, mark: str) -> None:
    """Refuse a form that does not come from a page of ours. Raises ApiProblem."""
    if not visitor.is_known or not hmac.compare_digest(visitor.mark.encode(), mark.encode()):
        raise ApiProblem(403, "This form is too old, or not from a page of this server.")


def set_cookie(response: Response, identity: str, *, is_secure: bool) -> None:
    """Give a browser the cookie of its session."""
    response.set_cookie(
        COOKIE,
        identity,
        max_age=int(LASTS_S),
        httponly=True,
        samesite="strict",
        secure=is_secure,
        path="/",
    )
