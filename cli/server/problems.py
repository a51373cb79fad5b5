"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from continual.errors import CeditError, ContextExceeded, EditError, RequestError
from continual.history.corrections import UnknownRequest
from continual.history.reverting import RevertError
from continual.out_of_memory import is_out_of_memory
from continual.review.items import WrongState
from continual.review.queue import Held, KeyReused, UnknownItem
from continual.serving.desk import Busy, DeskClosed
from continual.serving.names import UnknownModel
from store import UnknownRevision
from store.errors import AmbiguousRevision

INVALID, RETRY_AFTER_S = "invalid_request_error", 1
_LOG = logging.getLogger("cedit.server")
_TYPES = {
    401: (INVALID, "invalid_api_key"),
    403: (INVALID, "permission_denied"),
    404: (INVALID, "not_found"),
    405: (INVALID, "method_not_allowed"),
    408: (INVALID, "request_timeout"),
    409: (INVALID, "conflict"),
    413: (INVALID, "request_too_large"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("server_error", "unavailable"),
}


class ApiProblem(Exception):
    """A request that is refused, with its status and the words for the client."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        reason: str = "",
        retry_s: float = RETRY_AFTER_S,
    ) -> None:
        """`reason` is the guard's, for its metric; `retry_s` counts for 429 and 503."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.reason, self.retry_s = reason, retry_s

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        default = (INVALID, None) if self.status < 500 else ("server_error", "internal_error")
        kind, code = _TYPES.get(self.status, default)
        error = {"message": self.message, "type": kind, "param": self.param}
        return {"error": {**error, "code": self.code or code}}


def problem_of(error: Exception) -> ApiProblem:
    """Return the problem to tell a client. An error that nobody expected is told to the log
    alone."""
    if isinstance(error, ApiProblem):
        return error
    if isinstance(error, UnknownModel | UnknownRevision | AmbiguousRevision):
        return ApiProblem(404, str(error), "model", "model_not_found")
    if isinstance(error, UnknownItem | UnknownRequest):
        return ApiProblem(404, str(error))
    if isinstance(error, WrongState | Held | KeyReused | EditError | RevertError):
        return ApiProblem(409, str(error))
    if isinstance(error, ContextExceeded):
        return ApiProblem(400, str(error), "messages", "context_length_exceeded")
    if isinstance(error, RequestError):
        return ApiProblem(400, str(error))
    if isinstance(error, Busy):
        return ApiProblem(429, str(error))
    if isinstance(error, DeskClosed):
        return ApiProblem(503, str(error))
    if is_out_of_memory(error):
        return ApiProblem(503, "There is not enough memory for this answer: ask for less of it.")
    _LOG.error("%s: %s", type(error).__name__, error, exc_info=error)
    if isinstance(error, CeditError):
        return ApiProblem(500, str(error))
    return ApiProblem(500, "The server failed at this request; its log says more.")


def response_of(problem: ApiProblem) -> JSONResponse:
    """Return the response for a problem."""
    headers: dict[str, str] = {}
    if problem.status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(problem.retry_s)))
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(problem.body, problem.status, headers)


def _told(request: Request, problem: ApiProblem) -> Response:
    """Return the response for a problem: a page for a browser, JSON for all else."""
    is_page = "text/html" in request.headers.get("accept", "")
    show = getattr(request.app.state, "show_problem", None)
    if not is_page or show is None or request.url.path.startswith("/v1/"):
        return response_of(problem)
    response: Response = show(request, problem)
    return response


def add_problem_handlers(app: FastAPI) -> None:
    """Answer all errors of an application in one form."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _told(request, _invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return _told(request, ApiProblem(error.status_code, str(error.detail)))

    @app.exception_handler(ApiProblem)
    async def refused(request: Request, error: ApiProblem) -> Response:
        return _told(request, error)

    @app.exception_handler(CeditError)
    async def known(request: Request, error: CeditError) -> Response:
        return _told(request, problem_of(error))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return _told(request, problem_of(error))


def _invalid(errors: Sequence[Any]) -> ApiProblem:
    """Return the problem of a body that does not fit, by its first fault."""
    first = errors[0] if errors else {"loc": (), "msg": "cannot be read"}
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiProblem(400, f"{place}: {message}" if place else message, place or None)
