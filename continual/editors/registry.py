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
    folder_name, _, made = EDITORS[name].partition(".")
    folder = import_module(f"continual.editors.{folder_name}")
    config = getattr(folder, f"{made}Config")
    return cast(Editor, getattr(folder, made)(config.of(settings)))


def _require(name: str) -> None:
    if name not in EDITORS:
        known = ", ".join([*EDITORS, *CHOICES])
        raise CeditError(f"Unknown editor {name!r}: choose one of {known}.")
