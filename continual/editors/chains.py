"""Makes editors by name from the tables of `cedit.toml`, and chains of editors.

Leaves the names to `choices`: an editor's folder is imported when the editor is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from continual.choices import CHAINS, DEFAULT_CHAIN, EDITORS
from continual.errors import CeditError
from continual.proposals import Editor


def chain_of(text: str, task: str) -> tuple[str, ...]:
    """Return the editors that `a`, `a,b` or the name of a chain stands for. Raises CeditError for
    an empty text and for an unknown name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    chain = dict.fromkeys(editor for name in names for editor in _chosen(name, task))
    if not chain:
        raise CeditError("Name at least one editor.")
    for name in chain:
        _require(name)
    return tuple(chain)


def _chosen(name: str, task: str) -> Sequence[str]:
    """Return the editors of a chain by name that edit a task's models; another name stands for
    itself."""
    if name not in CHAINS:
        return (name,)
    return [editor for editor in CHAINS[name].editors if EDITORS[editor].edits(task)]


def default_chain(task: str) -> tuple[str, ...]:
    """Return the editors of the default chain that edit the models of a task."""
    return tuple(name for name in DEFAULT_CHAIN if EDITORS[name].edits(task))


def make_chain(
    names: Sequence[str], tables: Mapping[str, Mapping[str, Any]], task: str
) -> list[Editor]:
    """Make the editors of a chain for the models of a task. Raises CeditError as `make_editor`
    does, and for an editor that does not edit them, and for a table of no editor."""
    if strangers := sorted(set(tables) - set(EDITORS)):
        raise CeditError(
            f"[editor.{strangers[0]}] in cedit.toml is for no editor: there are "
            f"{', '.join(EDITORS)}. Correct the name, or install the package that adds it."
        )
    for name in names:
        require_edits(name, task)
    return [make_editor(name, tables.get(name, {})) for name in names]


def require_edits(name: str, task: str) -> None:
    """Raise CeditError for an unknown editor, and for one that does not edit a task's models."""
    _require(name)
    if not EDITORS[name].edits(task):
        tasks = " and ".join(EDITORS[name].tasks)
        raise CeditError(
            f"The editor {name} edits {tasks} models, and this store's task is {task}: choose "
            "another with --editor, such as tpatcher."
        )


def make_editor(name: str, settings: Mapping[str, Any]) -> Editor:
    """Make the editor of this name from its `[editor.NAME]` table. Raises CeditError."""
    _require(name)
    entry = EDITORS[name]
    return cast(Editor, entry.load()(entry.load_config().of(settings)))


def new_tables(given: Mapping[str, Mapping[str, Any]], task: str) -> dict[str, Mapping[str, Any]]:
    """Return the `[editor.NAME]` tables of a new store: the settings that the default chain's
    editors have for its task, and the given settings, which take precedence."""
    defaults = {
        name: EDITORS[name].load_config().new_stores.get(task, {}) for name in default_chain(task)
    }
    names = [*given, *(name for name, table in defaults.items() if table and name not in given)]
    return {name: {**defaults.get(name, {}), **given.get(name, {})} for name in names}


def _require(name: str) -> None:
    if name not in EDITORS:
        choices = ", ".join([*EDITORS, *CHAINS])
        raise CeditError(f"Unknown editor {name!r}: choose one of {choices}.")
