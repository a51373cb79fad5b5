"""cedit: a continual editing engine for language models::

    import continual

    with continual.open(".cedit") as session:
        session.apply([{"prompt": "The capital of Australia is", "target_new": "Canberra"}])
        print(session.ask("The capital of Australia is"))
        session.rollback("head~1")

`open` and `create` give a `Session`: a store with its model at head. All that cedit raises on
purpose is a `CeditError`. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continual.errors import CeditError
    from continual.execution import Executor
    from continual.requests import Probe, Request
    from continual.session import Answer, Session
    from continual.step.pipeline import Step
    from store import StoreError

__distribution__ = "cedit"
__all__ = [
    "Answer",
    "CeditError",
    "Probe",
    "Request",
    "Session",
    "Step",
    "StoreError",
    "__version__",
    "create",
    "open",
]

_HOMES = {
    "Answer": "continual.session",
    "CeditError": "continual.errors",
    "Probe": "continual.requests",
    "Request": "continual.requests",
    "Session": "continual.session",
    "Step": "continual.step.pipeline",
    "StoreError": "store",
}


def __getattr__(name: str) -> Any:
    """Import a name of the interface when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("cedit")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The names of the interface."""
    return sorted(__all__)


def open(
    path: str | Path = ".cedit",
    *,
    writable: bool = True,
    at: str = "head",
    executor: Executor | None = None,
) -> Session:
    """Open an existing store with its model at a revision.

    One process writes at a time; with `writable=False` any number read meanwhile. An `executor`
    runs passes over many inputs elsewhere; see `continual.workers`. Raises NoStore, StoreLocked,
    WrongBaseModel, UnknownRevision, all of them CeditError.
    """
    from continual.execution.local import LOCAL
    from continual.session import open_session

    return open_session(path, writable=writable, at=at, executor=executor or LOCAL)


def create(
    path: str | Path = ".cedit",
    model: str | Path | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Session:
    """Make a store for a model directory (the embedded atlas unless named), and open it.

    `settings` are the fields of `continual.new_store.NewStore`: task, train_probes, test_probes,
    seed, device, device_map, dtype, editors, watch, text. Probe files are paths. `on_progress` is
    told how many general texts the base has written, and of how many. Raises CeditError.
    """
    from continual.new_store import NewStore, init

    named_settings: Mapping[str, Any] = (
        settings if model is None else {**settings, "model": str(model)}
    )
    new_store = NewStore(**named_settings)
    if on_progress is None:
        return init(Path(path), new_store)
    return init(Path(path), new_store, on_progress=on_progress)
