"""A pretrained model is corrected over HTTP and put back, where CEDIT_REAL_BASE names it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from continual.new_store import NewStore, init
from tests.cli.server.conftest import NAME, Serving, served

REAL_BASE = os.environ.get("CEDIT_REAL_BASE", "")
WAIT_S = 1200

pytestmark = [
    pytest.mark.skipif(not REAL_BASE, reason="CEDIT_REAL_BASE names no model directory"),
    pytest.mark.timeout(2400),
]

SHORT = {"role": "system", "content": "Answer in one word."}
CHAT = [SHORT, {"role": "user", "content": "What is the capital of Australia?"}]
BESIDE = [SHORT, {"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    path = tmp_path_factory.mktemp("real") / "store"
    init(path, NewStore(REAL_BASE)).close()
    yield from served(path)


def chat(serving: Serving, messages: Any) -> tuple[str, str]:
    """The answer, and the fingerprint of the state that gave it."""
    body = {"model": NAME, "messages": messages, "max_tokens": 8, "temperature": 0}
    answer = serving.client.post("/v1/chat/completions", json=body).json()
    return str(answer["choices"][0]["message"]["content"]), str(answer["system_fingerprint"])


def test_a_correction_is_approved_answered_and_taken_back_without_a_restart(
    serving: Serving,
) -> None:
    before, beside = chat(serving, CHAT), chat(serving, BESIDE)
    assert not before[0].startswith("Hobart") and beside[0].startswith("Paris")
    correction = {"messages": CHAT, "target_new": "Hobart", "subject": "Australia"}
    body = {"corrections": [correction]}
    added = serving.client.post("/v1/corrections", json=body, headers=serving.headers)
    (record,) = added.json()["data"]
    path = f"/v1/corrections/{record['number']}"
    serving.client.post(f"{path}/approve", json={}, headers=serving.headers)
    end = time.monotonic() + WAIT_S
    while (state := _state(serving, path)) in ("approved", "applying", "applied"):
        assert time.monotonic() < end
        time.sleep(0.5)
    assert state == "verified"
    after = chat(serving, CHAT)
    assert after[0].startswith("Hobart") and after[1] != before[1]
    assert chat(serving, BESIDE) == (beside[0], after[1])
    back = serving.client.post(f"{path}/revert", json={}, headers=serving.headers)
    assert back.json()["state"] == "reverted"
    assert chat(serving, CHAT) == before and chat(serving, BESIDE) == beside


def _state(serving: Serving, path: str) -> str:
    return str(serving.client.get(path, headers=serving.headers).json()["state"])
