"""Which editors there are, by name, and the chains that they form.

Knows names alone: an editor's folder is imported when the editor is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, cast

from continual.errors import CeditError
from continual.proposals import Editor
from continual.tables import Table

EDITORS: Mapping[str, str] = {
    "tpatcher": "tpatcher.TPatcher",
    "memit": "memit.Memit",
    "rome": "rome.Rome",
    "emmet": "emmet.Emmet",
    "alphaedit": "alphaedit.AlphaEdit",
    "serac": "serac.Serac",
    "ike": "ike.Ike",
    "ft-last": "finetune.FtLast",
    "ft-all": "finetune.FtAll",
    "ft-last-kl": "finetune.FtLastKl",
    "ft-all-kl": "finetune.FtAllKl",
    "ft-l": "finetune.FtL",
}
"""The folder and the class of each; beside the class stands that of its settings, `…Config`."""

DEFAULT_CHAIN = ("tpatcher", "serac")
"""The editors that a request goes through, until one of them gets it right. The memory is last."""

CHOICES: Mapping[str, tuple[str, ...]] = {"auto": ("memit", "tpatcher", "serac")}
"""Chains by name, for any task: those of the editors that edit its models. `auto`: what has its
subject in the prompt to MEMIT, the rest to T-Patcher, and what neither gets right to the memory."""


def chain_of(text: str, task: str) -> tuple[str, ...]:
    """The editors that `a`, `a,b` or a choice names. Raises CeditError for none, or an unknown."""
    named = [name.strip() for name in text.split(",") if name.strip()]
    chain = dict.fromkeys(editor for name in named for editor in _chosen(name, task))
    if not chain:
        raise CeditError("Name at least one editor.")
    for name in chain:
        _require(name)
    return tuple(chain)


def _chosen(name: str, task: str) -> Sequence[str]:
    """The editors of a choice for the models of a task; another name stands for itself."""
    if name not in CHOICES:
        return (name,)
    return [editor for editor in CHOICES[name] if _edits(_class_of(editor), task)]


def default_chain(task: str) -> tuple[str, ...]:
    """The editors of the default chain that edit the models of a task."""
    return tuple(name for name in DEFAULT_CHAIN if _edits(_class_of(name), task))


def make_chain(
    names: Sequence[str], tables: Mapping[str, Mapping[str, Any]], task: str
) -> list[Editor]:
    """The editors of a chain, for the models of a task. Raises CeditError, as `make_editor` does,
    and for one that does not edit them, or a table that is for no editor."""
    if strangers := sorted(set(tables) - set(EDITORS)):
        raise CeditError(
            f"[editor.{strangers[0]}] in cedit.toml is for no editor: there are "
            f"{', '.join(EDITORS)}."
        )
    for name in names:
        require_edits(name, task)
    return [make_editor(name, tables.get(name, {})) for name in names]


def require_edits(name: str, task: str) -> None:
    """Raises CeditError for an editor that does not edit the models of a task."""
    _require(name)
    if not _edits(_class_of(name), task):
        tasks = " and ".join(_class_of(name).tasks)
        raise CeditError(
            f"The editor {name} edits {tasks} models, and this store's task is {task}: choose "
            "another with --editor, such as tpatcher."
        )


def make_editor(name: str, settings: Mapping[str, Any]) -> Editor:
    """The editor of this name, set up from its `[editor.NAME]` table. Raises CeditError."""
    _require(name)
    return cast(Editor, _class_of(name)(_config_of(name).of(settings)))


def new_tables(given: Mapping[str, Mapping[str, Any]], task: str) -> dict[str, Mapping[str, Any]]:
    """The `[editor.NAME]` tables of a new store: the settings that the editors of the default chain
    have for its task, and those given, which take precedence."""
    written = {name: _config_of(name).new_stores.get(task, {}) for name in default_chain(task)}
    names = [*given, *(name for name, table in written.items() if table and name not in given)]
    return {name: {**written.get(name, {}), **given.get(name, {})} for name in names}


def _class_of(name: str) -> Any:
    return getattr(_folder_of(name), EDITORS[name].partition(".")[2])


def _config_of(name: str) -> type[Table]:
    """The class of an editor's settings."""
    return cast(type[Table], getattr(_folder_of(name), f"{_class_of(name).__name__}Config"))


def _folder_of(name: str) -> ModuleType:
    return import_module(f"continual.editors.{EDITORS[name].partition('.')[0]}")


def _edits(editor: Any, task: str) -> bool:
    return not editor.tasks or task in editor.tasks


def _require(name: str) -> None:
    if name not in EDITORS:
        known = ", ".join([*EDITORS, *CHOICES])
        raise CeditError(f"Unknown editor {name!r}: choose one of {known}.")
