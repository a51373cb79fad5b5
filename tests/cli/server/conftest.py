"""A served store of a tiny model that chats, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cli.server.app import make_app
from cli.server.service import Service
from continual.new_store import NewStore, init
from continual.serving.desk import Desk
from continual.serving.limits import ServerSettings
from continual.serving.tokens import tokens_at_start
from continual.session import open_session
from tests import tiny_chat

NAME = "tiny"
WAIT_S = 60


@dataclass
class Serving:
    """A client of a served store, and the administrator's token."""

    client: TestClient
    service: Service
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """The headers of an administrator."""
        return {"Authorization": f"Bearer {self.token}"}

    def chat(self, country: int, **more: Any) -> Any:
        """Ask about a capital, in a chat."""
        body = {"model": NAME, "messages": tiny_chat.turn(country), "max_tokens": 12, **more}
        return self.client.post("/v1/chat/completions", json=body)


@pytest.fixture(scope="session")
def chat_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store on a model that knows twelve capitals, as texts and in chats."""
    folder = tmp_path_factory.mktemp("served")
    model = tiny_chat.save_chat_model(folder / "model")
    watch = {"texts": 0, "neighbours": 0}
    calibration = {"at_first_use": False}
    new = NewStore(str(model), watch=watch, calibration=calibration)
    init(folder / "store", new).close()
    return folder / "store"


@pytest.fixture
def serving(chat_store: Path, tmp_path: Path) -> Iterator[Serving]:
    """A server of a store of one's own."""
    import shutil

    path = tmp_path / "store"
    shutil.copytree(chat_store, path)
    yield from served(path)


@pytest.fixture(scope="module")
def shared(chat_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server for tests that only ask."""
    import shutil

    path = tmp_path_factory.mktemp("shared") / "store"
    shutil.copytree(chat_store, path)
    yield from served(path)


def served(path: Path, **more: Any) -> Iterator[Serving]:
    """Serve a store; it is closed in the end."""
    tokens, made = tokens_at_start(path)
    token = made.token if made else tokens.tokens[0].token
    session = open_session(path)
    limits = ServerSettings(body_bytes_max=100_000, requests_per_minute=0)
    options = {"limits": limits, "hosts": frozenset({"testserver"}), **more}
    service = Service(session, Desk(session), NAME, tokens, **options)
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        end = time.monotonic() + WAIT_S
        while not service.writer.is_ready and time.monotonic() < end:
            time.sleep(0.005)
        yield Serving(client, service, token)
