"""The guard in front of all endpoints: sizes of bodies, names of hosts, foreign pages, headers."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cli.server.problems import ApiProblem, response_of

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # without any, browsers send Origin: null with forms
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_SAFE = ("GET", "HEAD")


class Guard:
    """Refuses requests before anything reads them."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str], body_bytes_max: int) -> None:
        self._app, self._hosts, self._body_bytes_max = app, hosts, body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        problem = self._problem(scope["method"], headers)
        if problem is not None:
            await response_of(problem)(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                for name, value in HEADERS.items():
                    MutableHeaders(scope=message).setdefault(name, value)
            await send(message)

        body = await self._whole(receive)
        if body is None:
            await response_of(self._too_large())(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), marked)

    def _problem(self, method: str, headers: Headers) -> ApiProblem | None:
        host = headers.get("host", "")
        if self._hosts and _name(f"//{host}") not in self._hosts:
            return ApiProblem(
                403, "This server does not go by that host name: name it with --allow-host."
            )
        origin = headers.get("origin")
        if origin is not None and method not in _SAFE and urlsplit(origin).netloc != host:
            return ApiProblem(403, "Pages from elsewhere may not write here.")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._body_bytes_max:
            return self._too_large()
        return None

    def _too_large(self) -> ApiProblem:
        return ApiProblem(413, f"The body has more than {self._body_bytes_max:,} bytes.")

    async def _whole(self, receive: Receive) -> bytes | None:
        """Return the body; None for one that is too large, whatever its head says."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._body_bytes_max:
                return None
            if not message.get("more_body", False):
                return bytes(body)


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
