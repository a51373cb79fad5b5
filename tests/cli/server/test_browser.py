"""A person corrects a model in a browser, without a terminal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_language as language
from tests.cli.conftest import Start, start  # noqa: F401
from tests.cli.server.conftest import NAME

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS = 60_000


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as made:
        opened = made.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_a_person_corrects_a_model_in_a_browser(
    browser: Any,
    chat_store: Path,
    tmp_path: Path,
    start: Start,  # noqa: F811
) -> None:
    store = tmp_path / "store"
    shutil.copytree(chat_store, store)
    child = start("serve", "--store", store, "--port", "0", "--name", NAME, "--json")
    assert child.stdout is not None
    url = json.loads(child.stdout.readline())["url"]
    token = json.loads((store / "server" / "tokens.json").read_text())["tokens"][0]["token"]
    page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
    page.set_default_timeout(WAIT_MS)
    faults: list[str] = []
    page.on("console", lambda told: faults.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    target = language.correction(2)["target_new"]

    page.goto(f"{url}/login")
    page.keyboard.type(token)  # the field has the focus
    page.keyboard.press("Enter")
    page.wait_for_url(f"{url}/queue")
    page.goto(url)
    page.fill("textarea", language.ask(2))
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("[data-answers] details")  # the last answer is whole
    assert page.locator(".answer").all_inner_texts() == [language.capital(2)] * 2
    page.fill("input[name=answer]", target)
    page.fill("input[name=subject]", language.COUNTRIES[2])
    page.click("text=Hand in a correction")
    page.wait_for_url(f"{url}/corrections/1*")
    page.goto(f"{url}/queue")
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.keyboard.press("a")
    page.wait_for_url(f"{url}/queue?message=*")
    page.goto(f"{url}/corrections/1")
    while page.locator("main > p > .tag").first.inner_text() in ("approved", "applying"):
        page.reload()
    page.goto(url)
    page.fill("textarea", language.ask(2))
    page.click("main form button")
    page.wait_for_selector("text=correction 1")
    assert page.locator(".answer").nth(1).inner_text().startswith(target)
    page.goto(f"{url}/history")
    page.click("text=Compare A and B")
    page.wait_for_selector("text=B has")
    page.goto(f"{url}/health/page")
    page.click("text=Read everything back")
    page.wait_for_selector("text=as it was written")  # the page looks again by itself
    page.goto(f"{url}/corrections/1")
    page.click("text=Take it back")
    page.wait_for_url(f"{url}/corrections/1?message=*")
    assert page.locator("main > p > .tag").first.inner_text() == "reverted"
    paths = (
        "/",
        "/queue",
        "/corrections/1",
        "/history",
        "/history/diff",
        "/health/page",
        "/settings",
    )
    for path in paths:
        page.goto(url + path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    assert faults == []
