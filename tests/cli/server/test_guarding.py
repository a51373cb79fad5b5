"""The guard: rates and numbers of requests, and bodies that never end."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.server.app import make_app
from cli.server.guarding import HEADERS, _network
from continual.serving.limits import ServerSettings
from tests import tiny_language as language
from tests.cli.server.conftest import NAME, Serving, served
from tests.cli.server.test_completions import error_of

LIMIT = 4


@pytest.fixture
def limited(chat_store: Path, tmp_path: Path) -> Iterator[Serving]:
    """A server that takes few requests."""
    shutil.copytree(chat_store, tmp_path / "store")
    limits = ServerSettings(requests_per_minute=LIMIT, requests_at_once=2, body_seconds_max=1.0)
    yield from served(tmp_path / "store", limits=limits)


def ask(serving: Serving, **headers: str) -> Any:
    body = {"model": NAME, "prompt": language.ask(1), "max_tokens": 1}
    return serving.client.post("/v1/completions", json=body, headers=headers)


def test_a_caller_has_so_many_requests_a_minute(limited: Serving) -> None:
    answers = [ask(limited) for _ in range(LIMIT)]
    assert [answer.status_code for answer in answers] == [200] * LIMIT
    assert answers[0].headers["x-ratelimit-limit-requests"] == str(LIMIT)
    left = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers]
    assert left == sorted(left, reverse=True)
    refused = ask(limited)
    error = error_of(refused, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "4 requests a minute" in error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 15
    assert all(refused.headers[name] == value for name, value in HEADERS.items())
    assert ask(limited, **limited.headers).status_code == 200  # a token has a rate of its own
    for path in ("/health", "/ready", "/metrics"):
        assert limited.client.get(path).status_code == 200
    assert 'cedit_refused_total{reason="rate"} 1.0' in limited.client.get("/metrics").text


def test_a_wrong_token_counts_for_its_address(limited: Serving) -> None:
    wrong = {"Authorization": "Bearer cedit-wrong"}
    statuses = [limited.client.get("/v1/corrections", headers=wrong).status_code for _ in range(6)]
    assert statuses == [401] * LIMIT + [429] * 2
    assert ask(limited).status_code == 429


def test_openais_client_hears_of_its_rate(limited: Serving) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(
        base_url="http://testserver/v1",
        api_key="none",
        http_client=limited.client,
        max_retries=0,
    )
    for _ in range(LIMIT):
        client.models.list()
    with pytest.raises(openai.RateLimitError, match="4 requests a minute"):
        client.models.list()


def scope(serving: Serving) -> dict[str, Any]:
    headers = [(b"host", b"testserver"), (b"content-type", b"application/json")]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 5),
        "server": ("testserver", 80),
    }


async def sent(serving: Serving, messages: list[dict[str, Any]], wait_s: float) -> int | None:
    """Send messages to a new application, and never any more; return the response's status."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(wait_s)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await make_app(serving.service)(scope(serving), receive, send)
    return statuses[0] if statuses else None


def test_a_body_that_never_ends_is_refused(limited: Serving) -> None:
    part = {"type": "http.request", "body": b"{", "more_body": True}
    assert asyncio.run(sent(limited, [part], 5.0)) == 408
    assert asyncio.run(sent(limited, [part], 0.01)) is None  # the client has gone
    whole = {**part, "body": b"x" * (limited.service.limits.body_bytes_max + 1)}
    assert asyncio.run(sent(limited, [whole], 5.0)) == 413


def test_an_answer_that_nobody_waits_for_is_not_given(limited: Serving) -> None:
    gate, service = threading.Event(), limited.service
    service.desk.do(lambda _: gate.wait(30))
    body = json.dumps({"model": NAME, "prompt": language.ask(1), "max_tokens": 30}).encode()
    whole = {"type": "http.request", "body": body, "more_body": False}
    assert asyncio.run(sent(limited, [whole], 0.05)) == 499
    gate.set()
    service.desk.do(lambda _: None).result()
    assert "cedit_generation_tokens_total 0.0" in service.metrics.page().decode()


def test_a_caller_has_so_many_requests_at_once(limited: Serving) -> None:
    part = {"type": "http.request", "body": b"{", "more_body": True}

    async def three() -> list[int | None]:
        app, statuses = make_app(limited.service), []

        async def one(wait_s: float) -> int | None:
            await asyncio.sleep(wait_s)
            got: list[int] = []
            messages = [part]

            async def receive() -> dict[str, Any]:
                if messages:
                    return messages.pop(0)
                await asyncio.sleep(5.0)
                return part

            async def send(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    got.append(message["status"])

            await app(scope(limited), receive, send)
            return got[0]

        statuses += await asyncio.gather(one(0.0), one(0.0), one(0.1))
        return statuses

    assert asyncio.run(three()) == [408, 408, 429]


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:2", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_an_address_of_version_6_counts_by_its_network(host: str, network: str) -> None:
    assert _network({"client": (host, 1)}) == network
    assert _network({}) == "unknown"
