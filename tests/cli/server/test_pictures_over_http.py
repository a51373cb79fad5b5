"""A model that sees, over HTTP: pictures come as data URIs, in asks and in corrections."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cli.server.corrections import waited
from continual.new_store import NewStore, init
from continual.prompts import Chat
from store import gc
from tests import tiny_language as language
from tests.cli.server.conftest import NAME, WAIT_S, Serving, served
from tests.tiny_pictures import (
    IMAGE,
    PLACES,
    picture,
    seeing_model,
    seeing_processor,
    seeing_tokenizer,
)

QUESTION = "the capital of Badar is"
TARGET = language.CAPITALS[4]
END = "<end>"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("seeing")
    tokenizer = seeing_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE, END]})
    tokenizer.chat_template = TEMPLATE
    seeing_model(tokenizer).save_pretrained(folder / "model")
    seeing_processor(tokenizer).save_pretrained(folder / "model")
    watch = {"texts": 0, "neighbours": 0}
    new = NewStore(str(folder / "model"), task={"name": "multimodal"}, watch=watch)
    init(folder / "store", new).close()
    yield from served(folder / "store")


def uri(number: int) -> str:
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def messages(url: str, text: str = QUESTION) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def chat(serving: Serving, url: str, **more: Any) -> Any:
    body = {"model": NAME, "messages": messages(url), "max_tokens": 4, **more}
    return serving.client.post("/v1/chat/completions", json=body)


def kept(serving: Serving) -> set[str]:
    return set(serving.service.store.pictures.digests())


def test_a_chat_with_a_picture_is_answered_as_the_session_answers(serving: Serving) -> None:
    before = kept(serving)
    answers = []
    for number in (1, 2):
        response = chat(serving, uri(number), repetition_penalty=1.0)
        assert response.status_code == 200, response.text
        body = response.json()
        plain = serving.client.post(
            "/v1/chat/completions",
            json={"model": NAME, "messages": [{"role": "user", "content": QUESTION}]},
        ).json()
        places = body["usage"]["prompt_tokens"] - plain["usage"]["prompt_tokens"]
        assert places == PLACES
        answers.append(body["choices"][0]["message"]["content"])
        border = serving.service.border()
        assert border is not None
        prompt = Chat.from_json(border.prompt(messages(uri(number)), ()))
        own = waited(serving.service, lambda session, prompt=prompt: session.ask(prompt, 4))
        assert answers[-1] == own.strip()
    assert kept(serving) == before  # what is only asked about stays in memory


def test_a_penalty_on_repeated_words_passes_over_pictures(serving: Serving) -> None:
    assert chat(serving, uri(1), repetition_penalty=1.5).status_code == 200


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://example.org/sign.png", "data URI"),
        ("/etc/hostname", "data URI"),
        ("file:///etc/hostname", "data URI"),
        ("data:image/png;base64,AAAA", "no picture"),
        (uri(1)[:102], "cut short"),
        ("data:image/png;base64,!!!", "base64"),
    ],
)
def test_what_is_no_picture_of_its_own_is_refused(serving: Serving, url: str, told: str) -> None:
    response = chat(serving, url)
    assert response.status_code == 400
    assert told in response.json()["error"]["message"]
    record = {"prompt": QUESTION, "target_new": TARGET, "image": url}
    refused = serving.client.post(
        "/v1/corrections", json={"correction": record}, headers=serving.headers
    )
    assert refused.status_code == 400
    assert told in refused.json()["error"]["message"]


def test_too_large_a_body_is_refused_before_it_is_read(serving: Serving) -> None:
    response = chat(serving, "data:image/png;base64," + "A" * 200_000)
    assert response.status_code == 413


def test_a_correction_with_a_picture_waits_is_kept_and_applied(serving: Serving) -> None:
    record = {"messages": messages(uri(7)), "target_new": TARGET}
    added = serving.client.post(
        "/v1/corrections", json={"correction": record}, headers=serving.headers
    )
    assert added.status_code == 201, added.text
    (item,) = added.json()["data"]
    store = serving.service.store
    pictures = {store.pictures.path(digest) for digest in kept(serving)}
    assert pictures and not pictures & {found.path for found in gc.find(store)}
    path = f"/v1/corrections/{item['number']}"
    serving.client.post(f"{path}/approve", headers=serving.headers)
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        told = serving.client.get(path, headers=serving.headers).json()
        if told["state"] not in ("approved", "applying"):
            break
        time.sleep(0.02)
    assert told["state"] in ("applied", "verified"), told
    answer = chat(serving, uri(7), max_tokens=1).json()["choices"][0]["message"]["content"]
    assert answer == TARGET
