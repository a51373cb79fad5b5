"""The pages of upkeep: the server's health with its jobs, and its settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from cli.server.access import Served
from cli.server.corrections import waited
from cli.server.dashboard.sessions import Visitor
from cli.server.dashboard.showing import measured, shown
from cli.server.dashboard.visits import Person, Sent, require, to
from cli.server.problems import ApiProblem, problem_of
from cli.server.service import Service
from continual.review.mending import mend
from continual.serving.jobs import JobResult
from continual.serving.tokens import Role, Token
from store import gc
from store.check import verify_path

router = APIRouter(include_in_schema=False)
ACTS_SHOWN = 50
PROBLEMS_SHOWN = 100


@router.get("/health/page")
async def health_page(service: Served, visitor: Person, message: str = "") -> Response:
    """Show what is broken, the metrics, the line, the sizes, and the jobs."""
    if not visitor.may(Role.propose):
        return to("/login", "Log in to see the server's health.")
    report = await run_in_threadpool(lambda: service.facts.report)
    disk = shutil.disk_usage(service.store.path)
    return shown(
        "health",
        service,
        visitor,
        report=report,
        rates=measured(report.rates.to_json()),
        desk=service.desk,
        journal_bytes=service.facts.journal_bytes,
        free_bytes=disk.free,
        jobs=service.jobs.latest,
        is_running=service.jobs.is_running,
        message=message,
    )


@router.post("/health/page")
async def begin_job(service: Served, visitor: Person, form: Sent) -> Response:
    """Begin a job: read everything back, mend broken corrections, or remove unused files."""
    require(visitor, Role.admin, form)
    kind = form["decision"]
    if kind not in _JOBS:
        raise ApiProblem(400, "There is no such job.")
    name, work = _JOBS[kind]
    try:
        service.jobs.begin(name, visitor.token.name, lambda: work(service))
    except Exception as error:
        return to("/health/page", problem_of(error).message)
    service.audit.note(visitor.token.name, name)
    return to("/health/page", f"{name}: begun.")


def _verified(service: Service) -> JobResult:
    problems = verify_path(service.store.path)
    lines = [
        f"{p.object}: {p.problem}{' (harmless)' if p.harmless else ''}"
        for p in problems[:PROBLEMS_SHOWN]
    ]
    if all(problem.harmless for problem in problems):
        return JobResult("Everything is as it was written.", lines)
    return JobResult(
        "The store is damaged: keep a copy of it, stop the server, and heal what can be healed "
        "with `cedit verify --repair`.",
        lines,
    )


def _mended(service: Service) -> JobResult:
    broken, mended = waited(service, lambda session: mend(session, service.queue))
    return JobResult(f"{mended} of {broken} broken corrections are right again.")


def _collected(service: Service) -> JobResult:
    def collect(_: object) -> int:
        garbage = gc.find(service.store)
        gc.collect(service.store, garbage)
        return len(garbage)

    return JobResult(f"{waited(service, collect)} unused files are gone.")


_JOBS: Mapping[str, tuple[str, Callable[[Service], JobResult]]] = {
    "verify": ("Read everything back", _verified),
    "mend": ("Mend broken corrections", _mended),
    "collect": ("Remove unused files", _collected),
}


# -- settings


@router.get("/settings")
def settings_page(service: Served, visitor: Person, message: str = "") -> Response:
    """Show tokens, webhooks, limits, and the acts of administrators."""
    if not visitor.may(Role.admin):
        return to("/login", "Log in as an administrator to see the settings.")
    return _settings_page(service, visitor, message=message)


def _settings_page(service: Service, visitor: Visitor, **values: Any) -> Response:
    defaults: dict[str, Any] = {
        "tokens": service.tokens.tokens,
        "roles": list(Role.__members__),
        "limits": asdict(service.limits),
        "hosts": sorted(service.hosts),
        "is_open": service.is_open,
        "hooks": service.hooks.told(),
        "acts": service.audit.latest(ACTS_SHOWN),
        "made": None,
    }
    return shown("settings", service, visitor, **{**defaults, **values})


@router.post("/settings")
def change_settings(service: Served, visitor: Person, form: Sent) -> Response:
    """Make or remove a token or a webhook."""
    require(visitor, Role.admin, form)
    who, name = visitor.token.name, form["name"].strip()
    made: Token | None = None
    try:
        if form["decision"] == "remove":
            service.tokens = service.tokens.without(form["name"])
        elif form["decision"] == "add":
            service.tokens, made = service.tokens.added(name, form["role"])
            name = f"{name}, {made.role}"
        elif form["decision"] == "hook":
            service.hooks.add(name)
        elif form["decision"] == "unhook":
            service.hooks.remove(form["name"])
        else:
            raise ApiProblem(400, "There is no such act.")
    except Exception as error:
        return _settings_page(service, visitor, message=problem_of(error).message)
    service.audit.note(who, _ACTS[form["decision"]], name or form["name"])
    return _settings_page(service, visitor, made=made)


_ACTS = {
    "add": "token made",
    "remove": "token removed",
    "hook": "webhook made",
    "unhook": "webhook removed",
}
