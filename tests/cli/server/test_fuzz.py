"""Odd requests: each is answered or refused, and none is an error of the server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.server.conftest import NAME, Serving
from tests.cli.server.test_completions import events

EXAMPLES = 12
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([NAME, f"{NAME}@base", f"{NAME}@", "@", "\ud800", "\0", "e\u0301" * 9]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = (
    *("model", "messages", "prompt", "max_tokens", "temperature", "top_p", "top_k", "n", "stop"),
    *("stream", "seed", "logit_bias", "logprobs", "top_logprobs", "stream_options", "explain"),
)
USUAL = {
    "model": NAME,
    "messages": [{"role": "user", "content": "the capital"}],
    "prompt": "the capital",
    "max_tokens": 2,
}
fuzzed = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@fuzzed
@given(
    st.sampled_from(["/v1/chat/completions", "/v1/completions"]),
    st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=3),
)
def test_odd_fields_are_answered_or_refused(
    shared: Serving, path: str, odd: dict[str, Any]
) -> None:
    body = json.dumps({**USUAL, **odd})
    response = shared.client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404), (response.text, body)
    if response.status_code == 200 and response.headers["content-type"].startswith("text/event"):
        *chunks, end = events(response.text)
        assert end == "[DONE]"
        assert all("error" not in chunk for chunk in chunks)


@fuzzed
@given(
    st.sampled_from(["/v1/corrections", "/v1/feedback", "/v1/corrections/decide"]),
    st.dictionaries(
        st.sampled_from(["correction", "corrections", "prompt", "answer", "numbers", "decision"])
        | st.text(max_size=8),
        ANYTHING,
        max_size=4,
    ),
)
def test_odd_corrections_are_taken_or_refused(
    shared: Serving, path: str, odd: dict[str, Any]
) -> None:
    headers = {**shared.headers, "content-type": "application/json"}
    response = shared.client.post(path, content=json.dumps(odd), headers=headers)
    assert response.status_code in (200, 201, 400, 404, 409), (response.text, odd)


@fuzzed
@given(st.binary(max_size=60), st.sampled_from(["/v1/completions", "/login", "/", "/queue"]))
def test_odd_bytes_are_refused(shared: Serving, data: bytes, path: str) -> None:
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        response = shared.client.post(path, content=data, headers={"content-type": kind})
        assert response.status_code < 500, (response.text, data)


def test_the_description_is_kept(shared: Serving) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_dict(shared.client.get("/openapi.json").json())
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 10
    statuses: set[int] = set()
    for operation in operations:

        @settings(fuzzed, max_examples=EXAMPLES)
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            told = case.as_transport_kwargs(base_url="http://testserver")
            told["headers"] = {**dict(told.get("headers") or {}), **shared.headers}
            names = ("method", "url", "headers", "params", "json", "data")
            known = {name: told[name] for name in names if told.get(name) is not None}
            if isinstance(known.get("data"), str | bytes):
                known["content"] = known.pop("data")
            response = shared.client.request(**known)
            assert response.status_code < 500, (case, response.text)
            statuses.add(response.status_code)

        check()
    assert 200 in statuses
