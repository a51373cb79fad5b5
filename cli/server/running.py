"""Runs the application on a socket, until a signal ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

GRACE_S = 30
KEEP_ALIVE_S = 75  # longer than clients keep an idle connection: they are the ones to close it
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ToldServer(uvicorn.Server):
    """A server that tells its address when it listens, and ends quietly on a signal."""

    def __init__(self, config: uvicorn.Config, tell: Callable[[str, int], None]) -> None:
        super().__init__(config)
        self._tell = tell

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and tell where."""
        await super().startup(sockets=sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._tell(host, port)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End on the first signal when all is answered, on the second at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def run(
    app: FastAPI, host: str, port: int, tell: Callable[[str, int], None], connections_max: int
) -> None:
    """Serve an application until it is told to end."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=2 * connections_max,  # the guard refuses sooner, and says why
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        proxy_headers=False,
    )
    ToldServer(config, tell).run()
