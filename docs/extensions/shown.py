"""The console blocks of a page, run in their order, and compared with the output that they show.

    python docs/extensions/shown.py [--write] PAGE...

Every block of a page with `:class: shown` is run in one scratch folder: a line behind `$ ` is a
command, the lines below it are its output. A block with a caption that names a file is that file.
`--write` puts the output of today into the page. Ids, seconds and sizes may differ; all else is
compared to the letter.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"^```\{code-block\} (?P<language>\w+)\n(?P<options>(?::[^\n]*\n)*)(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
CAPTION = re.compile(r"^:caption: (\S+)$", re.MULTILINE)
VARYING = (
    (re.compile(r"\b[0-9a-f]{8,64}\b"), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\d"), "DATE"),
    (re.compile(r"\d+(\.\d+)? s\b"), "TIME"),
    (re.compile(r"\d+(\.\d+)? (KiB|MiB|B)\b"), "SIZE"),
    (re.compile(r" +"), " "),
)
"""Parts of an output that may differ from one run to another."""


@dataclass(frozen=True)
class Shown:
    """A command with its output."""

    command: str
    output: str


def read(body: str) -> Iterator[Shown]:
    """The commands of a block with the output that stands below each."""
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield Shown(command, output.strip("\n"))


def run(command: str, folder: Path) -> str:
    """The output of a command on a terminal of 80 columns, standard error behind it."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "80",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    line = re.sub(r"^cedit\b", f"{sys.executable} -m cli.main", command)
    ran = subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    out = (ran.stdout + ran.stderr).replace(str(folder), "~")
    return "\n".join(text.rstrip() for text in out.splitlines()).strip("\n")


def ran_again(page: str, folder: Path) -> str:
    """The page with the output of today."""

    def block(found: re.Match[str]) -> str:
        if caption := CAPTION.search(found["options"]):
            (folder / caption[1]).write_text(found["body"], encoding="utf-8")
        if found["language"] != "console" or ":class: shown" not in found["options"]:
            return found[0]
        body = "\n".join(
            f"$ {shown.command}\n{run(shown.command, folder)}".rstrip()
            for shown in read(found["body"])
        )
        return f"```{{code-block}} console\n{found['options']}{body}\n```"

    return BLOCK.sub(block, page)


def compared(text: str) -> list[str]:
    """The lines of a page without the parts that may differ."""
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    return text.splitlines()


def main(arguments: list[str]) -> int:
    """Compare or write pages; 1 where one shows another output than today's."""
    differs = False
    for page in map(Path, (name for name in arguments if name != "--write")):
        text = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            again = ran_again(text, Path(folder))
        if "--write" in arguments:
            page.write_text(again, encoding="utf-8")
        for line in unified_diff(compared(text), compared(again), str(page), "today", lineterm=""):
            differs = True
            print(line)
    return int(differs and "--write" not in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
