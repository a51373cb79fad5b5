"""How the code reads: plain docstrings, and one meaning for a name."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("store", "continual", "cli", "cedit", "benchmarks")
WHAT_MAX = 2.0  # in a thousand words of docstrings
QUESTIONS = ("what", "whether", "where", "how", "which", "who", "whose", "those", "that")
"""Words that begin no docstring of a function: it begins with a verb, or names its return."""


def documented(package: str) -> Iterator[tuple[Path, ast.AST, str]]:
    """Every docstring of a package, with its file and its node."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield path, node, text


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z'’]+", text.lower())


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_name_the_thing_instead_of_saying_what(package: str) -> None:
    total, places = 0, Counter[Path]()
    for path, _, text in documented(package):
        found = words(text)
        total += len(found)
        places[path.relative_to(ROOT)] += found.count("what")
    assert 1000 * places.total() <= WHAT_MAX * total, places.most_common(5)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_function_begins_with_a_verb_or_names_its_return(package: str) -> None:
    asked = [
        f"{path.relative_to(ROOT)}:{node.lineno} {text.splitlines()[0]}"
        for path, node, text in documented(package)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and words(text)[:1]
        and words(text)[0] in QUESTIONS
    ]
    assert not asked


def test_the_glossary_is_in_order_and_defines_each_word_once() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(\S.*)\n: ", page, flags=re.MULTILINE)
    assert len(terms) > 20
    assert terms == sorted(terms, key=str.casefold)
    assert len(set(terms)) == len(terms)


def test_a_word_of_the_glossary_is_the_name_of_one_class_at_most() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(\S.*)\n: ", page, flags=re.MULTILINE)
    names = {"".join(word.title() for word in re.findall(r"\w+", term)) for term in terms}
    homes: dict[str, list[str]] = {}
    for package in ("store", "continual"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and node.name in names:
                    homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert homes.keys() >= {"Patch", "Revision", "Request", "Probe", "Editor", "Effect", "Reach"}
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}
