"""`/health`, `/ready` and `/metrics`: for those who watch the server. They need no token."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from cli.server.access import Served

router = APIRouter()
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/health")
def health(service: Served) -> Response:
    """Tell whether the model's thread works; 503 when it does not."""
    fault = service.desk.fault
    if fault is not None:
        return JSONResponse({"status": "failed", "reason": fault}, 503)
    return JSONResponse({"status": "ok"})


@router.get("/ready")
def ready(service: Served) -> Response:
    """Tell whether an ask would be answered now; 503 when it would not."""
    head = service.store.head if service.desk.fault is None else None
    is_ready = head is not None and service.desk.has_room and service.writer.is_ready
    told: dict[str, Any] = {"status": "ready" if is_ready else "not ready"}
    if head is not None:
        told |= {"model": service.name, "head": head.id, "seq": head.seq}
        told |= {"fingerprint": head.fingerprint}
    return JSONResponse(told, 200 if is_ready else 503)


@router.get("/metrics")
def metrics(service: Served) -> Response:
    """Tell all numbers in Prometheus' text format."""
    return Response(service.metrics.page(), media_type=_PROMETHEUS)
