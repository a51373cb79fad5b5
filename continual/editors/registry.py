"""Which editors there are, by name, and the chains that they form.

Knows names alone: an editor's folder is imported when the editor is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from continual.editors import Editor
from continual.errors import CeditError

EDITORS: Mapping[str, str] = {
    "tpatcher": "TPatcher",
    "memit": "Memit",
    "rome": "Rome",
    "emmet": "Emmet",
    "alphaedit": "AlphaEdit",
    "serac": "Serac",
    "ike": "Ike",
}
"""The class of each, in the folder of its name; beside it stands its settings' class, `…Config`."""

DEFAULT_CHAIN = ("tpatcher", "serac")
"""The editors that a request goes through, until one of them gets it right. The memory is last."""

CHOICES: Mapping[str, tuple[str, ...]] = {"auto": ("memit", "tpatcher", "serac")}
"""Chains by name. `auto`: what has its subject in the prompt to MEMIT, the rest to T-Patcher, and
what neither gets right to the memory."""


def chain_of(text: str) -> tuple[str, ...]:
    """The editors that `a`, `a,b` or a choice names. Raises CeditError for none, or an unknown."""
    named = [name.strip() for name in text.split(",") if name.strip()]
    chain = dict.fromkeys(editor for name in named for editor in CHOICES.get(name, (name,)))
    if not chain:
        raise CeditError("Name at least one editor.")
    for name in chain:
        _require(name)
    return tuple(chain)


def make_editor(name: str, settings: Mapping[str, Any]) -> Editor:
    """The editor of this name, set up from its `[editor.NAME]` table. Raises CeditError."""
    _require(name)
    folder = import_module(f"continual.editors.{name}")
    made, config = EDITORS[name], getattr(folder, f"{EDITORS[name]}Config")
    return cast(Editor, getattr(folder, made)(config.of(settings)))


def _require(name: str) -> None:
    if name not in EDITORS:
        known = ", ".join([*EDITORS, *CHOICES])
        raise CeditError(f"Unknown editor {name!r}: choose one of {known}.")
