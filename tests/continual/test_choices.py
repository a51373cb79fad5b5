"""What can be chosen: every entry leads to its object, and README shows the same lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from continual.choices import CHAINS, DEFAULT_CHAIN, EDITORS, READERS, TASKS
from continual.errors import CeditError
from continual.registry import EditorEntry, Registry, RegistryEntry

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = [*EDITORS.own, *READERS.own, *TASKS.own]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_entry_leads_to_an_object_of_its_name(entry: RegistryEntry) -> None:
    found = entry.load()
    assert getattr(found, entry.offers[0]) == entry.name
    assert entry.summary
    assert "\n" not in entry.summary


@pytest.mark.parametrize("entry", EDITORS.own, ids=lambda entry: entry.name)
def test_an_editor_has_the_table_of_its_entry(entry: EditorEntry) -> None:
    assert entry.load_config().table == f"editor.{entry.name}"
    assert set(entry.tasks) <= set(TASKS)


def test_chains_are_of_editors_and_have_names_of_their_own() -> None:
    for editors in (DEFAULT_CHAIN, *(chain.editors for chain in CHAINS.values())):
        assert set(editors) <= set(EDITORS)
    assert not set(CHAINS) & set(EDITORS)
    assert all(chain.name == name for name, chain in CHAINS.items())


def test_readme_has_a_row_for_every_editor_and_chain() -> None:
    rows = _rows("| editor | what it does | a request needs | tasks |")
    summaries = {**EDITORS.summaries, **{name: chain.summary for name, chain in CHAINS.items()}}
    assert [row[0] for row in rows] == [f"`{name}`" for name in summaries]
    for (_, summary, _, _), expected in zip(rows, summaries.values(), strict=True):
        assert summary.startswith(expected)
    tasks = [", ".join(entry.tasks) or "all" for entry in EDITORS.own]
    assert [row[3] for row in rows] == [*tasks, *("all" for _ in CHAINS)]


def _rows(header: str) -> list[list[str]]:
    """The cells of the table in README below a header."""
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    begin = lines.index(header) + 2
    end = next(n for n in range(begin, len(lines)) if not lines[n].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[begin:end]]


def test_a_program_adds_an_entry_of_its_own_under_a_name_that_is_free() -> None:
    registry = Registry(EditorEntry, EditorEntry("one", "a:B", "the first"), reserved=("auto",))
    assert list(registry.summaries) == ["one"]
    registry.add(EditorEntry("two", "c:D", "the second"))
    assert registry["two"].path == "c:D"
    assert registry.summaries == {"one": "the first", "two": "the second"}
    for taken in ("one", "two", "auto"):
        with pytest.raises(CeditError, match="the name is taken"):
            registry.add(EditorEntry(taken, "e:F", "another"))
