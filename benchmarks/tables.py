"""The output of every benchmark: a table for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 240  # characters: a table is never wrapped


@dataclass(frozen=True)
class TextColumn:
    """A heading, the key of its value in each row, and the value's format."""

    heading: str
    key: str
    format: str = ""

    def cell(self, row: Mapping[str, Any]) -> str:
        """Return the row's value as text; a dash if there is none."""
        value = row.get(self.key)
        if value is None:
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        return format(value, self.format)


def show(title: str, columns: Sequence[TextColumn], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table in Markdown."""
    table = Table(box=box.MARKDOWN)
    for column in columns:
        table.add_column(column.heading, justify="right")
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    console = Console(width=WIDTH)
    console.print(title, table, sep="\n")


def note(text: str) -> None:
    """Report a benchmark's progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def write_json(path: Path | None, name: str, record: Mapping[str, Any]) -> None:
    """Write a benchmark's result and its machine; do nothing without a path."""
    if path is None:
        return
    content = {"benchmark": name, "machine": machine(), **record}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_whole(path: Path, content: Any) -> None:
    """Write JSON to a file that is either there in full or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def earlier(files: Sequence[Path], key: str) -> list[dict[str, Any]]:
    """Read the rows under a key from files that `write_json` wrote in other runs."""
    found: list[dict[str, Any]] = []
    for file in files:
        found += json.loads(file.read_text(encoding="utf-8"))[key]
    return found


def machine() -> dict[str, Any]:
    """Return the facts of the machine that a time depends on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
