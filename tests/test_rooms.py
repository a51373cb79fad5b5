"""The picture of the rooms in docs/design.md is the order that the linter holds."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_picture_of_the_rooms_is_the_order_that_the_linter_holds():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (engine,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c.get("exhaustive"))
    held = [sorted(layer.split(" | ")) for layer in engine["layers"]]
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    picture = design.split("## Rooms")[1].split("```")[1]
    assert [sorted(line.split()) for line in picture.strip().splitlines()] == held


def test_each_test_file_has_a_name_of_its_own():
    """Two of one name in folders without a package cannot be collected together."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    names = Counter(file.name for file in files)
    assert [str(file) for file in files if names[file.name] > 1] == []
