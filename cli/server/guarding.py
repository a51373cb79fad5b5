"""The guard in front of all endpoints: rates of callers, sizes of bodies, names of hosts, foreign
pages, headers."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cli.server.access import bearer_of
from cli.server.dashboard.sessions import COOKIE, Sessions
from cli.server.problems import ApiProblem, response_of
from cli.server.service import Service
from continual.serving.limits import Allowance, Present, Rates

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # without any, browsers send Origin: null with forms
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
UNCOUNTED = ("/health", "/ready", "/metrics")
"""Paths whose requests no rate counts: those who watch the server ask them all the time."""
_SAFE = ("GET", "HEAD")
_NETWORK_BITS = 64  # of an IPv6 address: whoever has one has them all


class Guard:
    """Refuses requests before anything reads them."""

    def __init__(self, app: ASGIApp, service: Service, sessions: Sessions) -> None:
        self._app, self._service, self._sessions = app, service, sessions
        limits = service.limits
        self._rates = Rates(limits.requests_per_minute) if limits.requests_per_minute else None
        self._present = Present()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        told: dict[str, str] = dict(HEADERS)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                for name, value in told.items():
                    MutableHeaders(scope=message).setdefault(name, value)
            await send(message)

        caller = self._caller(scope, headers)
        try:
            self._require_known(scope["method"], headers)
            if scope["path"] not in UNCOUNTED:
                self._require_rate(caller, told)
            with self._present.one_of(caller):
                body = await self._whole(receive)
                if body is not None:
                    await self._app(scope, _replayed(body, receive), marked)
        except ApiProblem as problem:
            self._service.metrics.refused.labels(problem.reason).inc()
            await response_of(problem)(scope, receive, marked)

    # -- callers and their rates

    def _caller(self, scope: Scope, headers: Headers) -> str:
        """Return the name under which a caller is counted: of its token, or its address."""
        owner = self._service.tokens.owner(bearer_of(headers.get("authorization")) or "")
        if owner is not None:
            return f"token {owner.name}"
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        name = self._sessions.token_of(cookie)
        return f"token {name}" if name is not None else f"address {_network(scope)}"

    def _require_rate(self, caller: str, told: dict[str, str]) -> None:
        """Count a request, and put the caller's rate among the headers to tell. Raises
        ApiProblem."""
        limits = self._service.limits
        if self._present.total >= limits.connections_max:
            raise ApiProblem(
                503, "The server has as many requests as it takes at once.", reason="connections"
            )
        if limits.requests_at_once and self._present.of(caller) >= limits.requests_at_once:
            raise ApiProblem(
                429,
                f"{limits.requests_at_once} requests of yours are being answered: wait for one of "
                "them.",
                reason="at once",
            )
        if self._rates is None:
            return
        allowance = self._rates.take(caller)
        told |= _rate_headers(self._rates.per_minute, allowance)
        if not allowance.is_allowed:
            raise ApiProblem(
                429,
                f"Rate limit reached: {self._rates.per_minute} requests a minute. Try again in "
                f"{allowance.retry_s:.3g} s.",
                reason="rate",
                retry_s=allowance.retry_s,
            )

    # -- hosts, pages and bodies

    def _require_known(self, method: str, headers: Headers) -> None:
        """Refuse foreign host names and pages, and bodies that say that they are too large. Raises
        ApiProblem."""
        host = headers.get("host", "")
        if self._service.hosts and _name(f"//{host}") not in self._service.hosts:
            raise ApiProblem(
                403,
                "This server does not go by that host name: name it with --allow-host.",
                reason="host",
            )
        origin = headers.get("origin")
        if origin is not None and method not in _SAFE and urlsplit(origin).netloc != host:
            raise ApiProblem(403, "Pages from elsewhere may not write here.", reason="origin")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._service.limits.body_bytes_max:
            raise self._too_large()

    def _too_large(self) -> ApiProblem:
        most = self._service.limits.body_bytes_max
        return ApiProblem(413, f"The body has more than {most:,} bytes.", reason="body")

    async def _whole(self, receive: Receive) -> bytes | None:
        """Return the body; None if the client has gone. Raises ApiProblem for one that is too
        large, whatever its head says, or too slow."""
        limits, body = self._service.limits, bytearray()
        try:
            async with asyncio.timeout(limits.body_seconds_max):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > limits.body_bytes_max:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise ApiProblem(
                408, f"The body took more than {limits.body_seconds_max:g} s.", reason="slow"
            ) from None


def _rate_headers(per_minute: int, allowance: Allowance) -> Mapping[str, str]:
    """Return the headers by which OpenAI's API tells a rate."""
    return {
        "x-ratelimit-limit-requests": str(per_minute),
        "x-ratelimit-remaining-requests": str(allowance.remaining),
        "x-ratelimit-reset-requests": f"{allowance.reset_s:.3f}s",
    }


def _network(scope: Scope) -> str:
    """Return the address that a request comes from; of an IPv6 address the network."""
    client = scope.get("client")
    host = str(client[0]) if client else "unknown"
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _NETWORK_BITS), strict=False))


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return the messages of a request whose body was read already."""
    is_told = False

    async def replayed() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
