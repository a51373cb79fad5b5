"""The dashboard's pages and forms, without a browser."""

from __future__ import annotations

import json
import re
import time
from html import escape
from typing import Any

import pytest
import torch

from cli.server.dashboard.showing import POLICY, STATIC
from continual.serving.jobs import Job
from continual.serving.tokens import Tokens
from tests import tiny_language as language
from tests.cli.server.conftest import WAIT_S, Serving
from tests.cli.server.test_corrections_over_http import propose, wait_for

PAGES = (
    *("/", "/queue", "/corrections/1", "/history", "/health/page"),
    *("/settings", "/history/diff?a=base"),
)
HOSTILE = "<script>alert('x')</script>\" onmouseover=\"y & z"


def log_in(serving: Serving, token: str = "") -> str:
    """Log in; return the mark that forms carry."""
    response = serving.client.post("/login", data={"token": token or serving.token})
    assert response.status_code == 200
    found = re.search(r'name="mark" value="([^"]+)"', response.text)
    assert found is not None
    return found[1]


def send(serving: Serving, path: str, mark: str, **fields: Any) -> Any:
    return serving.client.post(path, data={"mark": mark, **fields})


def test_every_page_is_whole_and_names_nothing_from_elsewhere(serving: Serving) -> None:
    propose(serving, language.correction(1))
    log_in(serving)
    for path in PAGES:
        page = serving.client.get(path)
        assert page.status_code == 200, path
        assert page.headers["content-security-policy"] == POLICY
        assert page.headers["cache-control"] == "no-store"
        links = re.findall(r'(?:href|src|action)="([^"]*)"', page.text)
        assert all(link.startswith(("/", "#", "data:,")) for link in links), links
        assert " style=" not in page.text
        assert not re.search(r"<script(?! src=)", page.text)
        assert not re.search(r"\son\w+=", page.text)
        for label in re.findall(r"<(?:input|textarea|select)[^>]*>", page.text):
            assert 'type="hidden"' in label or "name=" in label
    for name, kind in STATIC.items():
        file = serving.client.get(f"/static/{name}")
        assert file.headers["content-type"].startswith(kind)
        assert "http" not in file.text.replace("http-equiv", "")
    assert serving.client.get("/static/../service.py").status_code == 404
    assert serving.client.get("/static/base.html").status_code == 404


def test_nobody_sees_the_queue_without_a_token(serving: Serving) -> None:
    propose(serving, language.correction(1))
    for path in PAGES[1:]:
        page = serving.client.get(path, follow_redirects=False)
        assert (page.status_code, page.headers["location"][:6]) == (303, "/login")
    assert "Correction" not in serving.client.get("/").text
    refused = serving.client.post("/login", data={"token": "cedit-wrong"})
    assert refused.status_code == 401
    assert "set-cookie" not in refused.headers


def test_a_session_ends_with_its_token(serving: Serving) -> None:
    tokens, made = Tokens.of(serving.service.store.path).added("ana", "propose")
    serving.service.tokens = tokens
    mark = log_in(serving, made.token)
    cookie = serving.client.cookies.jar
    assert all(c.has_nonstandard_attr("HttpOnly") for c in cookie)
    assert serving.client.get("/queue", follow_redirects=False).status_code == 200
    assert send(serving, "/settings", mark, decision="add", name="x", role="ask").status_code == 403
    serving.service.tokens = tokens.without("ana")
    assert serving.client.get("/queue", follow_redirects=False).status_code == 303
    log_in(serving)
    assert send(serving, "/logout", "wrong").status_code == 403
    assert "Log in" in send(serving, "/logout", log_in(serving)).text


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/propose", {"receipt": "x", "answer": "y"}),
        ("/queue", {"number": "1", "decision": "approve"}),
        ("/corrections/1", {"decision": "approve"}),
        ("/history", {"decision": "rollback", "revision": "base"}),
        ("/health/page", {"all": "1"}),
        ("/settings", {"decision": "add", "name": "evil", "role": "admin"}),
    ],
)
def test_a_form_without_our_mark_does_nothing(
    serving: Serving, path: str, fields: dict[str, str]
) -> None:
    propose(serving, language.correction(1))
    assert serving.client.post(path, data=fields).status_code in (401, 403)
    log_in(serving)
    for mark in ("", "wrong"):
        assert send(serving, path, mark, **fields).status_code == 403
    assert [item.state for item in serving.service.queue.items()] == ["pending"]
    assert len(serving.service.tokens.tokens) == 1


def test_texts_of_others_are_escaped_everywhere(serving: Serving) -> None:
    mark = log_in(serving)
    record = {"prompt": HOSTILE, "target_new": HOSTILE, "subject": "alert"}
    assert propose(serving, record, why=HOSTILE).status_code == 201
    flag = {"prompt": HOSTILE, "comment": HOSTILE}
    serving.client.post("/v1/feedback", json=flag, headers=serving.headers)
    send(serving, "/settings", mark, decision="add", name=HOSTILE[:60], role="ask")
    pages = [serving.client.get(f"{path}?message={HOSTILE}") for path in PAGES[:-1]]
    pages += [serving.client.get("/corrections/2"), send(serving, "/", mark, prompt=HOSTILE)]
    for page in pages:
        assert "alert(" in page.text
        assert "<script>alert" not in page.text
        assert 'onmouseover="y' not in page.text
    assert escape("<script>alert('x')", quote=False).replace("'", "&#39;") in pages[2].text


def test_a_person_asks_hands_in_tries_approves_and_takes_back(serving: Serving) -> None:
    mark = log_in(serving)
    target = language.correction(2)["target_new"]
    page = send(serving, "/", mark, prompt=language.ask(2), left="base", right="head", chat="1")
    assert page.text.count(language.capital(2)) >= 2
    receipt = re.findall(r'name="receipt" value="([^"]+)"', page.text)[-1]
    fields = {"receipt": receipt, "answer": target, "subject": language.COUNTRIES[2]}
    page = send(serving, "/propose", mark, **fields, why="checked")
    assert page.url.path == "/corrections/1"
    assert "pending" in page.text
    tried = send(serving, "/corrections/1", mark, decision="try", editor="tpatcher")
    assert "Nothing was changed" in tried.text
    assert target in tried.text
    assert serving.service.store.head.seq == 0
    page = send(serving, "/corrections/1", mark, decision="approve", editor="magic")
    assert page.status_code == 400
    page = send(serving, "/queue", mark, number="1", decision="approve", why="yes")
    assert page.status_code == 200
    wait_for(serving, 1, "verified", "applied")
    page = send(serving, "/", mark, prompt=language.ask(2), chat="1")
    assert "/corrections/1" in page.text
    assert target in page.text
    page = send(serving, "/history", mark, decision="tag", revision="head", tag="good")
    assert "good" in page.text
    page = send(serving, "/corrections/1", mark, decision="revert", why="back")
    assert "reverted" in page.text
    page = send(serving, "/history", mark, decision="rollback", revision="good")
    assert "Head stands at @1" in page.text
    assert serving.service.queue.get(1).state == "verified"
    page = send(serving, "/history", mark, decision="burn", revision="good")
    assert page.status_code == 400
    acts = [(entry.who, entry.act) for entry in serving.service.audit.latest(9)]
    assert acts == [("admin", "rollback"), ("admin", "tag")]
    assert "head is @1" in serving.client.get("/settings").text


def test_an_answer_streams_and_ends_with_its_part_of_the_page(serving: Serving) -> None:
    (step,) = serving.service.desk.do(
        lambda session: session.apply([language.correction(2)], editor="tpatcher")
    ).result()
    fields = {"prompt": language.ask(2), "left": "base", "right": "head"}
    stream = {"accept": "text/event-stream"}
    told = serving.client.post("/", data=fields, headers=stream)
    assert told.headers["content-type"].startswith("text/event-stream")
    events = [
        dict(line.split(": ", 1) for line in event.split("\n"))
        for event in told.text.split("\n\n")[:-1]
    ]
    bodies = [(event["event"], json.loads(event["data"])) for event in events]
    html = ""
    for side, text in enumerate((language.capital(2), language.correction(2)["target_new"])):
        pieces = [body["text"] for kind, body in bodies if kind == "piece" and body["side"] == side]
        assert "".join(pieces).strip().startswith(text)
        (html,) = [b["html"] for kind, b in bodies if kind == "answer" and b["side"] == side]
        assert "".join(pieces).strip() in html
        assert ("No edit spoke" in html) == (side == 0)
    assert step.outcomes[0].id[:12] in html
    assert re.search(rf"<mark> ?{text}</mark>", html)
    assert kind_of(serving, {**fields, "right": "nowhere"}, stream) == 404
    assert kind_of(serving, {**fields, "prompt": "the " * 500}, stream) == "problem"
    assert kind_of(serving, {**fields, "prompt": ""}, stream) == 400


def kind_of(serving: Serving, fields: dict[str, str], headers: dict[str, str]) -> str | int:
    """The status of a stream that did not begin, or the kind of its last event."""
    told = serving.client.post("/", data=fields, headers=headers)
    if told.status_code != 200:
        assert told.json()["error"]["message"]
        return int(told.status_code)
    return str(re.findall(r"event: (\w+)", told.text)[-1])


def test_two_revisions_are_compared(serving: Serving) -> None:
    log_in(serving)
    serving.service.desk.do(
        lambda session: session.apply([language.correction(2)], editor="tpatcher")
    ).result()
    page = serving.client.get("/history/diff?a=base&b=head").text
    assert "B has" in page
    assert f"→ {language.correction(2)['target_new']}" in page
    assert "B has no longer" in serving.client.get("/history/diff?a=head&b=base").text
    assert "the same corrections" in serving.client.get("/history/diff?a=head&b=@1").text
    link = re.search(r'href="(/\?left=[^"]+)"', page)
    assert link is not None
    both = serving.client.get(link[1].replace("&amp;", "&")).text
    assert serving.service.store.head.id in both
    hostile = serving.client.get("/", params={"left": HOSTILE, "right": "head"})
    assert "<script>alert" not in hostile.text
    assert serving.client.get("/history/diff?a=nowhere&b=head").status_code == 404
    assert serving.client.get("/history").text.count('type="radio"') == 2 * 2
    serving.client.cookies.clear()
    refused = serving.client.get("/history/diff", follow_redirects=False)
    assert refused.headers["location"].startswith("/login")


def ended(serving: Serving, count: int) -> list[Job]:
    end = time.monotonic() + WAIT_S
    while serving.service.jobs.is_running or len(serving.service.jobs.latest) < count:
        assert time.monotonic() < end
        time.sleep(0.02)
    return serving.service.jobs.latest


def test_jobs_read_the_store_back_and_clean_it_up(serving: Serving) -> None:
    mark = log_in(serving)
    assert "begun" in send(serving, "/health/page", mark, decision="verify").text
    (job,) = ended(serving, 1)
    assert (job.state, job.who) == ("done", "admin")
    assert "as it was written" in job.result
    assert job.result in serving.client.get("/health/page").text
    send(serving, "/health/page", mark, decision="mend")
    assert ended(serving, 2)[0].result == "0 of 0 broken corrections are right again."
    orphan = serving.service.store.blobs.put({"orphan": torch.ones(3)}, {})
    send(serving, "/health/page", mark, decision="collect")
    assert "1 unused files are gone" in ended(serving, 3)[0].result
    assert not serving.service.store.blobs.path(orphan.sha256).exists()
    assert send(serving, "/health/page", mark, decision="burn").status_code == 400
    acts = [entry.act for entry in serving.service.audit.latest(9)]
    assert [act.split()[0] for act in acts] == ["Remove", "Mend", "Read"]


def test_webhooks_are_made_and_removed(serving: Serving) -> None:
    mark, url = log_in(serving), "http://127.0.0.1:9/hook"
    assert url in send(serving, "/settings", mark, decision="hook", name=url).text
    assert "already" in send(serving, "/settings", mark, decision="hook", name=url).text
    assert "no address" in send(serving, "/settings", mark, decision="hook", name="file:/x").text
    assert [hook["url"] for hook in serving.service.hooks.told()] == [url]
    (record,) = [record for _, record in serving.service.store.queue_entries("hook/")]
    assert (record["url"], record["kept"]) == (url, True)
    send(serving, "/settings", mark, decision="unhook", name=url)
    assert serving.service.hooks.told() == []
    assert "no webhook" in send(serving, "/settings", mark, decision="unhook", name=url).text
    assert "no such act" in send(serving, "/settings", mark, decision="burn", name="x").text
    acts = [entry.act for entry in serving.service.audit.latest(9)]
    assert acts == ["webhook removed", "webhook made"]


def test_open_corrections_are_amended_held_and_decided_together(serving: Serving) -> None:
    mark = log_in(serving)
    serving.client.post("/v1/feedback", json={"prompt": "x y"}, headers=serving.headers)
    propose(serving, language.correction(1), language.correction(2))
    assert "say what is right" in send(serving, "/corrections/1", mark, decision="approve").text
    fields = {"answer": "z", "rephrases": "x z\nz x\n", "relation": ""}
    assert "Amended" in send(serving, "/corrections/1", mark, decision="amend", **fields).text
    request = serving.service.queue.get(1).request
    assert request is not None
    assert request.rephrases == ("x z", "z x")
    assert "admin has it open" in send(serving, "/corrections/1", mark, decision="hold").text
    page = serving.client.post(
        "/queue", data={"mark": mark, "number": ["1", "2", "3"], "decision": "reject", "why": "no"}
    )
    assert page.status_code == 200
    assert [item.state for item in serving.service.queue.items()] == ["rejected"] * 3
    assert send(serving, "/corrections/9", mark, decision="reject").status_code == 404
    assert send(serving, "/queue", mark, number="x", decision="reject").status_code == 400
    page = serving.client.get("/corrections/9", headers={"accept": "text/html"})
    assert (page.status_code, "<html" in page.text) == (404, True)


def test_tokens_are_made_shown_once_and_removed(serving: Serving) -> None:
    mark = log_in(serving)
    page = send(serving, "/settings", mark, decision="add", name="bo", role="approve")
    token = re.search(r"cedit-[\w-]+", page.text)
    assert token is not None
    assert serving.service.tokens.owner(token[0]) is not None
    assert token[0] not in serving.client.get("/settings").text
    page = send(serving, "/settings", mark, decision="remove", name="admin")
    assert "last administrator" in page.text
    send(serving, "/settings", mark, decision="remove", name="bo")
    assert serving.service.tokens.owner(token[0]) is None


def test_a_body_that_is_no_form_is_refused(serving: Serving) -> None:
    for content, kind in (
        (b"token=x", "text/plain"),
        (b"token=\xff", "application/x-www-form-urlencoded"),
        (b"a=1&" * 5000, "application/x-www-form-urlencoded"),
    ):
        headers = {"content-type": kind}
        assert serving.client.post("/login", content=content, headers=headers).status_code == 400
