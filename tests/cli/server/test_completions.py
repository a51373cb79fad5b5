"""The OpenAI-compatible endpoints: chats, texts, streams, and errors as clients read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_chat
from tests import tiny_language as language
from tests.cli.conftest import Start, start  # noqa: F401
from tests.cli.server.conftest import NAME, Serving, served


def events(text: str) -> list[Any]:
    """The objects of a stream; its end is the text [DONE]."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    bodies = [line.removeprefix("data: ") for line in lines]
    return [body if body == "[DONE]" else json.loads(body) for body in bodies]


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error  # type: ignore[no-any-return]


def test_a_chat_is_answered_by_the_state_that_it_names(shared: Serving) -> None:
    response = shared.chat(2)
    body = response.json()
    (choice,) = body["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": language.capital(2),
        "refusal": None,
    }
    assert choice["finish_reason"] == "stop"
    assert body["object"] == "chat.completion"
    assert body["system_fingerprint"] == shared.service.store.head.fingerprint
    assert response.headers["X-Request-Id"] == body["id"]
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    read = shared.service.session.tokenizer(tiny_chat.templated(2), add_special_tokens=False)
    assert usage["prompt_tokens"] == len(read["input_ids"])


def test_a_stream_tells_the_same_answer(shared: Serving) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}, "n": 2}
    told = events(shared.chat(3, **options).text)
    assert told.pop() == "[DONE]"
    usage = told.pop()
    assert (usage["choices"], usage["usage"]["prompt_tokens"] > 0) == ([], True)
    assert {chunk["object"] for chunk in told} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in told}) == 1
    for index in range(2):
        own = [c for chunk in told for c in chunk["choices"] if c["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(choice["delta"].get("content", "") for choice in own)
        assert text == language.capital(3)
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == ["stop"]


def test_texts_go_on(shared: Serving) -> None:
    prompts = [language.ask(1), language.ask(4)]
    body = {"model": NAME, "prompt": prompts, "n": 2, "logprobs": 2, "max_tokens": 12}
    choices = shared.client.post("/v1/completions", json=body).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in choices]
    assert texts == [f" {language.capital(c)}" for c in (1, 1, 4, 4)]
    logprobs = choices[0]["logprobs"]
    assert "".join(logprobs["tokens"]) == texts[0]
    assert len(logprobs["top_logprobs"][0]) == 2
    streamed = events(shared.client.post("/v1/completions", json={**body, "stream": True}).text)
    for index, text in enumerate(texts):
        own = [c for e in streamed[:-1] for c in e["choices"] if c["index"] == index]
        assert "".join(choice["text"] for choice in own) == text


def test_the_same_seed_gives_the_same_answer(shared: Serving) -> None:
    def answer(seed: int, **more: Any) -> str:
        body = shared.chat(20, temperature=3.0, seed=seed, max_tokens=20, **more).json()
        return str(body["choices"][0]["message"]["content"])

    assert answer(1) == answer(1) != answer(2)
    assert answer(-1) == answer(-1)


def test_a_stop_text_ends_the_answer(shared: Serving) -> None:
    capital = language.capital(2)
    body = shared.chat(2, stop=[capital[2:4], "never"]).json()
    assert body["choices"][0]["message"]["content"] == capital[:2]
    assert body["choices"][0]["finish_reason"] == "stop"
    assert shared.chat(2, max_tokens=1).json()["choices"][0]["finish_reason"] == "length"


def test_models_are_revisions(serving: Serving) -> None:
    done = serving.service.desk.do(lambda s: s.apply([language.correction(2)], editor="tpatcher"))
    (step,) = done.result()
    serving.service.desk.do(lambda s: s.tag("fixed")).result()
    listed = serving.client.get("/v1/models").json()
    base = serving.service.store.base.fingerprint
    prints = {model["id"]: model["fingerprint"] for model in listed["data"]}
    head = step.revision.fingerprint
    assert prints == {NAME: head, f"{NAME}@base": base, f"{NAME}@fixed": head}
    target = language.correction(2)["target_new"]
    for model, text, fingerprint in (
        (NAME, target, head),
        (f"{NAME}@head", target, head),
        (f"{NAME}@fixed", target, head),
        (f"{NAME}@{step.revision.id[:8]}", target, head),
        (f"{NAME}@head~1", language.capital(2), base),
        (f"{NAME}@base", language.capital(2), base),
    ):
        body = {"model": model, "prompt": language.ask(2), "explain": True}
        answer = serving.client.post("/v1/completions", json=body).json()
        assert answer["choices"][0]["text"].strip().startswith(text)
        assert answer["system_fingerprint"] == fingerprint
        spoke = [e["request"] for token in answer["cedit"]["spoke"][0] for e in token["edits"]]
        assert set(spoke) == ({step.outcomes[0].id} if text == target else set())
        told = serving.client.get(f"/v1/models/{model}").json()
        assert (told["id"], told["fingerprint"]) == (model, fingerprint)


BODIES: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "another model": ({"model": "gpt-4"}, 404, "model_not_found"),
    "no such revision": ({"model": f"{NAME}@nowhere"}, 404, "model_not_found"),
    "a path": ({"model": f"{NAME}@../../etc/passwd"}, 404, "model_not_found"),
    "no messages": ({"messages": []}, 400, None),
    "an answer already": ({"messages": [{"role": "assistant", "content": "x"}]}, 400, None),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        400,
        None,
    ),
    "a picture for a model of texts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}],
                }
            ]
        },
        400,
        None,
    ),
    "too long": (
        {"messages": [{"role": "user", "content": "the capital " * 300}]},
        400,
        "context_length_exceeded",
    ),
    "too cold": ({"temperature": -1}, 400, None),
    "not a number": ({"top_p": "much"}, 400, None),
    "too many": ({"n": 9}, 400, None),
    "tools": ({"tools": [{"type": "function"}]}, 400, None),
    "JSON": ({"response_format": {"type": "json_object"}}, 400, None),
    "many stops": ({"stop": ["a"] * 17}, 400, None),
    "a surrogate": ({"messages": [{"role": "user", "content": "a\ud800"}]}, 400, None),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_a_bad_request_is_told_in_openais_words(shared: Serving, name: str, stream: bool) -> None:
    change, status, code = BODIES[name]
    body = {"model": NAME, "messages": tiny_chat.turn(1), "stream": stream, **change}
    response = shared.client.post(
        "/v1/chat/completions",
        content=json.dumps(body),
        headers={"content-type": "application/json"},
    )
    error = error_of(response, status)
    assert error["type"] == "invalid_request_error"
    assert code is None or error["code"] == code


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 5000, b'{"model": 1e999}']
)
def test_bytes_that_are_no_request_are_refused(shared: Serving, data: bytes) -> None:
    headers = {"content-type": "application/json"}
    for path in ("/v1/chat/completions", "/v1/completions"):
        error_of(shared.client.post(path, content=data, headers=headers), 400)


def test_large_bodies_foreign_pages_and_foreign_names_are_refused(shared: Serving) -> None:
    client, body = shared.client, {"model": NAME, "prompt": "x"}
    error_of(client.post("/v1/completions", content=b"x" * 100_001), 413)
    pieces = (b"x" * 1000 for _ in range(200))  # no length said before
    error_of(client.post("/v1/completions", content=pieces), 413)
    error_of(client.post("/v1/completions", json=body, headers={"Origin": "http://evil"}), 403)
    error_of(client.get("/health", headers={"Host": "evil.example"}), 403)
    preflight = {"Origin": "http://evil", "Access-Control-Request-Method": "POST"}
    refused = client.options("/v1/completions", headers=preflight)
    assert "access-control-allow-origin" not in refused.headers
    own = client.post("/v1/completions", json=body, headers={"Origin": "http://testserver"})
    assert own.status_code == 200


def test_health_ready_and_metrics(serving: Serving) -> None:
    client, service = serving.client, serving.service
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json()["fingerprint"] == service.store.head.fingerprint
    serving.chat(1)
    error_of(serving.client.get("/v1/nothing"), 404)
    error_of(serving.client.get("/v1/completions"), 405)
    lines = dict(
        line.rsplit(" ", 1)
        for line in client.get("/metrics").text.splitlines()
        if not line.startswith("#")
    )
    assert lines['cedit_requests_total{route="/v1/chat/completions",status="200"}'] == "1.0"
    assert float(lines["cedit_generation_tokens_total"]) > 0
    assert lines["cedit_answer_seconds_count"] == "1.0"
    assert lines["cedit_head"] == "0.0"
    service.desk.close("for this test")
    assert client.get("/health").status_code == 503
    assert client.get("/ready").status_code == 503
    assert error_of(serving.chat(1), 503)["type"] == "server_error"


def test_asking_needs_a_token_where_the_server_is_not_open(
    chat_store: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(chat_store, tmp_path / "closed")
    for closed in served(tmp_path / "closed", is_open=False):
        assert error_of(closed.chat(1), 401)["code"] == "invalid_api_key"
        for text in ("Bearer wrong", "Basic x", "Bearer "):
            headers = {"Authorization": text}
            error_of(closed.client.get("/v1/models", headers=headers), 401)
        assert closed.client.get("/v1/models", headers=closed.headers).status_code == 200
        for path in ("/health", "/ready", "/metrics"):
            assert closed.client.get(path).status_code == 200


def test_openais_own_client_talks_to_a_server(
    chat_store: Path,
    tmp_path: Path,
    start: Start,  # noqa: F811
) -> None:
    import shutil

    import openai

    shutil.copytree(chat_store, tmp_path / "store")
    child = start("serve", "--store", tmp_path / "store", "--port", "0", "--name", NAME, "--json")
    assert child.stdout is not None
    told = json.loads(child.stdout.readline())
    with openai.OpenAI(base_url=f"{told['url']}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [NAME, f"{NAME}@base"]
        messages: Any = tiny_chat.turn(2)
        answer = client.chat.completions.create(model=NAME, messages=messages)
        assert answer.choices[0].message.content == language.capital(2)
        assert answer.system_fingerprint == told["fingerprint"]
        stream = client.chat.completions.create(model=NAME, messages=messages, stream=True)
        deltas = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(deltas) == language.capital(2)
        text = client.completions.create(model=NAME, prompt=language.ask(2), max_tokens=12)
        assert text.choices[0].text.strip() == language.capital(2)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-4")
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=NAME, messages=messages, n=99)
    child.terminate()
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0
    assert errors.count("cedit-") == 1  # the administrator's token
