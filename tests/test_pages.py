"""The pages of the site: what they show is what the program prints, and nothing is left out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import COMMANDS
from docs.extensions import shown

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
QUICK = ("going-back",)
TUTORIALS = sorted(
    path.stem
    for path in (DOCS / "tutorial").glob("*.md")
    if ":class: shown" in path.read_text("utf-8")
)
README_BYTES_MAX = 9216


@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_shows_what_the_program_prints(page: str) -> None:
    if page not in QUICK and not os.environ.get("CEDIT_FULL"):
        pytest.skip("runs with CEDIT_FULL=1")
    command = [sys.executable, DOCS / "extensions" / "shown.py", DOCS / "tutorial" / f"{page}.md"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_readme_shows_what_the_demonstration_prints() -> None:
    if not os.environ.get("CEDIT_FULL"):
        pytest.skip("runs with CEDIT_FULL=1")
    demo = "\n".join(shown.compared(shown.run("cedit demo", ROOT)))
    readme = "\n".join(shown.compared((ROOT / "README.md").read_text("utf-8")))
    assert demo in readme


def test_every_page_is_in_a_table_of_contents() -> None:
    listed: set[Path] = set()
    for page in [*DOCS.rglob("*.md"), *DOCS.rglob("*.rst")]:
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            names = [line.strip() for line in block.splitlines() if line[:1] not in ("", ":")]
            listed |= {(page.parent / name).resolve() for name in names}
    pages = {p.with_suffix("").resolve() for p in [*DOCS.rglob("*.md"), *DOCS.rglob("*.rst")]}
    assert pages - listed == {DOCS / "index"}


def test_links_of_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.encode()) <= README_BYTES_MAX
    links = re.findall(r"\]\((?!http)([^)#\s]+)", text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_json_page_names_every_command_with_records() -> None:
    text = (DOCS / "reference" / "json.md").read_text("utf-8")
    silent = {"init", "watch", "completion", "demo", "bench", "report"}
    missing = [name for name in COMMANDS if f"`{name}`" not in text and name not in silent]
    assert missing == []
