"""The application: endpoints, the guard before them, and the count of requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from cli.server import completions, corrections, health
from cli.server.dashboard import pages
from cli.server.dashboard.sessions import Sessions
from cli.server.guarding import Guard
from cli.server.problems import add_problem_handlers
from cli.server.service import Service


def make_app(service: Service) -> FastAPI:
    """Make the application of a service, which it closes when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.close)

    app = FastAPI(
        title="cedit",
        version=version("cedit"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.state.sessions = sessions = Sessions()
    app.state.show_problem = pages.show_problem
    for router in (completions.router, corrections.router, health.router, pages.router):
        app.include_router(router)
    add_problem_handlers(app)
    app.middleware("http")(_counted)
    app.add_middleware(Guard, service=service, sessions=sessions)
    return app


async def _counted(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Count a request by its route and status."""
    response = await call_next(request)
    route = getattr(request.scope.get("route"), "path", "none")
    metrics = request.app.state.service.metrics
    metrics.requests.labels(route, str(response.status_code)).inc()
    return response
