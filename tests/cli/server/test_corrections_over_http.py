"""Feedback and corrections over HTTP: from a thumbs-down to a verified correction, and back."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from continual.serving.tokens import Tokens
from tests import tiny_chat
from tests import tiny_language as language
from tests.cli.conftest import Cedit, Start, cedit, start, write_lines  # noqa: F401
from tests.cli.server.conftest import NAME, Serving, served
from tests.cli.server.test_completions import error_of

WAIT_S = 60


def correction(country: int, target: str | None = None) -> dict[str, Any]:
    """A correction of a chat and of a text, by T-Patcher."""
    return {**language.correction(country, target), "forms": ["plain", "chat"]}


def propose(serving: Serving, *records: dict[str, Any], **more: Any) -> Any:
    body = {"corrections": list(records), "editor": "tpatcher", **more}
    return serving.client.post("/v1/corrections", json=body, headers=serving.headers)


def act(serving: Serving, number: int, decision: str, **body: Any) -> Any:
    path = f"/v1/corrections/{number}/{decision}"
    return serving.client.post(path, json=body, headers=serving.headers)


def shown(serving: Serving, number: int) -> Any:
    response = serving.client.get(f"/v1/corrections/{number}", headers=serving.headers)
    assert response.status_code == 200, response.text
    return response.json()


def wait_for(serving: Serving, number: int, *states: str) -> Any:
    end = time.monotonic() + WAIT_S
    while (record := shown(serving, number))["state"] not in states:
        assert time.monotonic() < end, record
        time.sleep(0.02)
    return record


def said(serving: Serving, country: int) -> str:
    return str(serving.chat(country).json()["choices"][0]["message"]["content"])


def test_from_a_thumbs_down_to_a_verified_correction_and_back(serving: Serving) -> None:
    answer = serving.chat(2).json()
    before = answer["system_fingerprint"]
    target = language.correction(2)["target_new"]
    body = {"receipt": answer["id"], "verdict": "wrong", "answer": target, "comment": "no"}
    added = serving.client.post("/v1/feedback", json=body, headers=serving.headers)
    assert added.status_code == 201
    (record,) = added.json()["data"]
    assert record["state"] == "pending"
    whole = shown(serving, record["number"])
    assert whole["origin"]["answer"] == language.capital(2)
    assert whole["origin"]["fingerprint"] == before
    assert whole["content"]["messages"] == tiny_chat.turn(2)
    act(serving, record["number"], "approve", why="yes", editor="tpatcher")
    done = wait_for(serving, record["number"], "verified")
    assert [event["who"] for event in done["events"][:2]] == ["admin", "admin"]
    assert done["proof"]["after"].startswith(target)
    assert said(serving, 2).startswith(target)
    after = serving.chat(2).json()["system_fingerprint"]
    assert after == serving.service.store.head.fingerprint != before
    assert said(serving, 3) == language.capital(3)
    metrics = serving.client.get("/metrics").text
    assert 'cedit_corrections{state="verified"} 1.0' in metrics
    assert act(serving, record["number"], "revert", why="back").json()["state"] == "reverted"
    assert said(serving, 2) == language.capital(2)


def test_a_flag_waits_for_the_right_answer(serving: Serving) -> None:
    answer = serving.chat(1).json()
    body = {"receipt": answer["id"]}
    (record,) = serving.client.post("/v1/feedback", json=body, headers=serving.headers).json()[
        "data"
    ]
    assert (record["state"], record["target_new"]) == ("flagged", None)
    error_of(act(serving, 1, "approve"), 409)
    error_of(act(serving, 1, "try"), 409)
    amended = serving.client.patch(
        "/v1/corrections/1", json={"correction": correction(1)}, headers=serving.headers
    )
    assert amended.json()["state"] == "pending"
    right = {"receipt": answer["id"], "verdict": "right"}
    told = serving.client.post("/v1/feedback", json=right, headers=serving.headers).json()
    assert told == {"object": "feedback", "verdict": "right", "correction": None}
    unknown = {"receipt": "cmpl-nothing", "answer": "x"}
    error_of(serving.client.post("/v1/feedback", json=unknown, headers=serving.headers), 404)
    named = {**unknown, "prompt": language.ask(5)}
    response = serving.client.post("/v1/feedback", json=named, headers=serving.headers)
    assert response.status_code == 201


def test_a_key_makes_a_proposal_once(serving: Serving) -> None:
    headers = {**serving.headers, "Idempotency-Key": "k1"}
    body = {"corrections": [language.correction(1), language.correction(2)]}
    first = serving.client.post("/v1/corrections", json=body, headers=headers)
    again = serving.client.post("/v1/corrections", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert [r["number"] for r in again.json()["data"]] == [1, 2]
    assert all(record["repeated"] for record in again.json()["data"])
    other = {"corrections": [language.correction(3)]}
    error_of(serving.client.post("/v1/corrections", json=other, headers=headers), 409)
    assert len(serving.service.queue) == 2


def test_a_try_out_changes_nothing_and_says_what_would(serving: Serving) -> None:
    propose(serving, language.correction(2))
    head = serving.service.store.head
    told = act(serving, 1, "try").json()
    assert told["outcome"] == "applied"
    assert told["before"].startswith(language.capital(2))
    assert told["after"].startswith(language.correction(2)["target_new"])
    assert told["rates"]["SR"] == 1.0
    assert serving.service.store.head == head
    assert shown(serving, 1)["state"] == "pending"
    assert said(serving, 2) == language.capital(2)


def test_many_are_listed_decided_held_and_conflict(serving: Serving) -> None:
    other = language.CAPITALS[0]
    propose(serving, *(language.correction(n) for n in (1, 2, 3)))
    propose(serving, language.correction(1, other))
    error_of(act(serving, 9, "approve"), 404)
    numbers = {"numbers": [1, 2], "decision": "approve", "why": "both"}
    decided = serving.client.post("/v1/corrections/decide", json=numbers, headers=serving.headers)
    assert decided.status_code == 200
    for number in (1, 2):
        wait_for(serving, number, "verified", "applied")
    assert [c["target_new"] for c in shown(serving, 4)["conflicts"]] == [
        language.correction(1)["target_new"]
    ]
    page = serving.client.get(
        "/v1/corrections?state=pending&limit=1", headers=serving.headers
    ).json()
    assert ([r["number"] for r in page["data"]], page["has_more"]) == ([3], True)
    error_of(serving.client.get("/v1/corrections?state=odd", headers=serving.headers), 400)
    act(serving, 3, "hold")
    tokens, made = Tokens.of(serving.service.store.path).added("bo", "approve")
    serving.service.tokens = tokens
    bo = {"Authorization": f"Bearer {made.token}"}
    error_of(serving.client.post("/v1/corrections/3/reject", headers=bo), 409)
    assert act(serving, 3, "release").json()["held_by"] is None
    assert serving.client.post("/v1/corrections/3/reject", headers=bo).json()["state"] == "rejected"
    act(serving, 4, "approve")
    wait_for(serving, 4, "verified", "applied")
    assert shown(serving, 1)["state"] == "superseded"


def test_what_was_approved_before_a_restart_is_applied_after_it(
    chat_store: Path, tmp_path: Path
) -> None:
    from continual.requests import Request
    from continual.review.queue import CorrectionQueue, Proposal
    from store import Store

    shutil.copytree(chat_store, tmp_path / "store")
    with Store.open(tmp_path / "store", writable=True) as store:
        queue = CorrectionQueue(store)
        request = Request.from_json(language.correction(4))
        queue.add([Proposal.of(request, "ana", editor="tpatcher")])
        queue.decide([1], "approved", "bo")
    for serving in served(tmp_path / "store"):
        wait_for(serving, 1, "verified", "applied")


BODIES: dict[str, tuple[str, Any, int]] = {
    "nothing": ("/v1/corrections", {}, 400),
    "no target": ("/v1/corrections", {"correction": {"prompt": "x"}}, 400),
    "an unknown field": ("/v1/corrections", {"correction": {}, "path": "/etc/passwd"}, 400),
    "an unknown editor": (
        "/v1/corrections",
        {"correction": language.correction(1), "editor": "magic"},
        400,
    ),
    "too many": ("/v1/corrections", {"corrections": [{}] * 1001}, 400),
    "a surrogate": (
        "/v1/corrections",
        {"correction": {"prompt": "\ud800", "target_new": "x"}},
        400,
    ),
    "no number": ("/v1/corrections/decide", {"numbers": [], "decision": "approve"}, 400),
    "no decision": ("/v1/corrections/decide", {"numbers": [1], "decision": "burn"}, 400),
    "an odd number": ("/v1/corrections/0/approve", {}, 400),
    "an odd act": ("/v1/corrections/1/burn", {}, 400),
    "an odd verdict": ("/v1/feedback", {"verdict": "meh"}, 400),
    "no prompt": ("/v1/feedback", {"verdict": "wrong"}, 404),
    "odd messages": ("/v1/feedback", {"messages": [{}]}, 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused(shared: Serving, name: str) -> None:
    path, body, status = BODIES[name]
    headers = {**shared.headers, "content-type": "application/json"}
    error_of(shared.client.post(path, content=json.dumps(body), headers=headers), status)


@pytest.mark.parametrize("role", [None, "ask", "propose"])
def test_each_role_may_do_no_more_than_it_says(serving: Serving, role: str | None) -> None:
    propose(serving, language.correction(1))
    headers = {}
    if role is not None:
        tokens, made = serving.service.tokens.added(role, role)
        serving.service.tokens = tokens
        headers = {"Authorization": f"Bearer {made.token}"}
    status = 401 if role is None else 403
    client, body = serving.client, {"correction": language.correction(2)}
    error_of(client.post("/v1/corrections/1/approve", headers=headers), status)
    error_of(client.post("/v1/corrections/1/revert", headers=headers), status)
    decide = {"numbers": [1], "decision": "approve"}
    error_of(client.post("/v1/corrections/decide", json=decide, headers=headers), status)
    error_of(client.patch("/v1/corrections/1", json=body, headers=headers), status)
    proposed = client.post("/v1/corrections", json=body, headers=headers)
    listed = client.get("/v1/corrections", headers=headers)
    if role == "propose":
        assert (proposed.status_code, listed.status_code) == (201, 200)
    else:
        error_of(proposed, status)
        error_of(listed, status)


def test_answers_under_way_mix_no_states_while_corrections_are_applied(serving: Serving) -> None:
    """Every answer is what its fingerprint's state says, asked again when all is quiet."""
    from concurrent.futures import ThreadPoolExecutor

    countries = range(20, 26)
    propose(serving, *(language.correction(c) for c in countries))
    numbers = {"numbers": list(range(1, len(countries) + 1)), "decision": "approve"}

    def ask(place: int) -> tuple[int, str, str]:
        country = countries[place % len(countries)]
        body = {"model": NAME, "prompt": language.ask(country), "max_tokens": 6}
        answer = serving.client.post("/v1/completions", json=body).json()
        return country, answer["system_fingerprint"], answer["choices"][0]["text"]

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, place) for place in range(60)]
        serving.client.post("/v1/corrections/decide", json=numbers, headers=serving.headers)
        answers = [future.result() for future in asked]
        answers += list(pool.map(ask, range(12)))
    for number in numbers["numbers"]:
        wait_for(serving, number, "verified", "applied")
    store = serving.service.store
    by_fingerprint = {r.fingerprint: r.id for r in store.revisions()}
    assert len({fingerprint for _, fingerprint, _ in answers}) > 1
    for country, fingerprint, text in set(answers):
        model = f"{NAME}@{by_fingerprint[fingerprint]}"
        body = {"model": model, "prompt": language.ask(country), "max_tokens": 6}
        again = serving.client.post("/v1/completions", json=body).json()
        assert again["choices"][0]["text"] == text


def test_the_command_line_decides_with_a_server_and_without(
    chat_store: Path,
    tmp_path: Path,
    cedit: Cedit,  # noqa: F811
    start: Start,  # noqa: F811
) -> None:
    store = tmp_path / "store"
    shutil.copytree(chat_store, store)
    records = [language.correction(1), {"prompt": "x"}, language.correction(2)]
    file = write_lines(tmp_path / "some.jsonl", records)
    ran = cedit("queue", "add", file, "--store", store, "--editor", "tpatcher", "--json")
    assert ran.code == 3
    assert (ran.last["new"], ran.last["repeated"]) == (2, 0)
    assert ran.last["unreadable"][0]["line"] == 2
    assert cedit("queue", "add", file, "--store", store, "--json").code == 1  # another editor
    again = cedit("queue", "add", file, "--store", store, "--editor", "tpatcher", "--json")
    assert (again.last["new"], again.last["repeated"]) == (0, 2)
    assert "2 pending" in cedit("queue", "list", "--store", store).out
    assert cedit("queue", "approve", 9, "--store", store).code == 2
    assert cedit("queue", "approve", 1, "--store", store, "--why", "yes").code == 0
    applied = cedit("queue", "apply", "--store", store, "--json")
    assert [record["number"] for record in applied.records] == [1]
    assert "cedit: at @1" in cedit("queue", "show", 1, "--store", store).out

    child = start("serve", "--store", store, "--port", "0", "--name", NAME, "--json")
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["seq"] == 1
    assert cedit("queue", "approve", 2, "--store", store).code == 0
    assert cedit("queue", "reject", 1, "--store", store).code == 1
    end = time.monotonic() + WAIT_S
    while "cedit: at @2" not in cedit("queue", "show", 2, "--store", store).out:
        assert time.monotonic() < end
        time.sleep(0.2)
    third = write_lines(tmp_path / "third.jsonl", [language.correction(3)])
    assert cedit("queue", "add", third, "--store", store, "--json").last["new"] == 1
    child.terminate()
    child.communicate(timeout=WAIT_S)
    assert cedit("queue", "reject", 3, "--store", store).code == 0
    assert cedit("verify", "--store", store).code == 0
