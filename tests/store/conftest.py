"""A store to work on, and drafts to grow it with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store import Draft, Revision, Store

ROOT = Path(__file__).resolve().parents[2]
Grow = Callable[..., list[Revision]]
Python = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".cedit"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.init(path, {"model": {"path": "m"}}, {"model": "m"}, "f0") as opened:
        yield opened


@pytest.fixture
def grow() -> Grow:
    """Commit some edits, each with one request about one of two subjects."""

    def grow_by(store: Store, count: int, **extra: object) -> list[Revision]:
        revisions = []
        for _ in range(count):
            n = store.length
            identity = f"request-{n}"
            draft = Draft(
                operation="edit",
                parent=store.head.id,
                fingerprint=f"f{n}",
                body={"requests": [{"id": identity}], "position": n},
                requests={identity: {"prompt": f"prompt-{n}"}},
                subjects={identity: f"subject-{n % 2}"},
                streams={"news": {"position": n}},
                **extra,  # type: ignore[arg-type]
            )
            revisions.append(store.commit(draft))
        return revisions

    return grow_by


@pytest.fixture
def python() -> Iterator[Python]:
    """Start Python programs that can import the store; none outlives the test."""
    children: list[subprocess.Popen[bytes]] = []

    def start(program: str, *arguments: object, under: list[str] | None = None) -> object:
        command = [*(under or []), sys.executable, "-c", program, *map(str, arguments)]
        child = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        children.append(child)
        return child

    yield start  # type: ignore[misc]
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()
