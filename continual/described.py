"""The meaning of a table's settings, read from its class: names, types, defaults, a line for each.

A setting is described where it is written: by the comment behind it, or by the text below it.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import pkgutil
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import cast

from continual.choices import EDITORS
from continual.tables import SettingsTable


@dataclass(frozen=True)
class DescribedSetting:
    """A key of a table of `cedit.toml`."""

    name: str
    type: str  # as its class writes it
    default: object  # MISSING for one that has to be given
    meaning: str  # empty for a setting without a comment or text

    @property
    def is_required(self) -> bool:
        """Tell whether the key has to be given."""
        return self.default is MISSING


def toml_value(value: object) -> str:
    """Return a value as TOML writes it; empty for None, as TOML has no null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


_CLASSES = {
    "model": "continual.settings:ModelSettings",
    "run": "continual.settings:RunSettings",
    "watch": "continual.watch.config:WatchConfig",
    "calibration": "continual.calibration.config:CalibrationConfig",
    "memory": "continual.memory.recall:MemoryConfig",
    "server": "continual.serving.limits:ServerSettings",
}
_EDITOR = "editor."


def table_names() -> list[str]:
    """Return the tables of `cedit.toml` with a class: the engine's, and one for each editor."""
    return [*_CLASSES, *(_EDITOR + name for name in EDITORS)]


def table_class(name: str) -> type[SettingsTable]:
    """Return the class of a table. Raises KeyError for an unknown name."""
    if name.startswith(_EDITOR):
        return cast(type[SettingsTable], EDITORS[name.removeprefix(_EDITOR)].load_config())
    return cast(type[SettingsTable], pkgutil.resolve_name(_CLASSES[name]))


def settings_of(table: type[SettingsTable]) -> list[DescribedSetting]:
    """Return the settings of a table in their order, the ones of its base classes first."""
    meanings: dict[str, str] = {}
    for cls in reversed(table.__mro__):
        if issubclass(cls, SettingsTable) and cls is not SettingsTable:
            meanings.update(_meanings(cls))
    return [
        DescribedSetting(field.name, str(field.type), _default(field), meanings.get(field.name, ""))
        for field in fields(table)
    ]


def _default(field: Field[object]) -> object:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _meanings(cls: type) -> Mapping[str, str]:
    """Return the line for each setting that the class itself declares, by the setting's name."""
    source = textwrap.dedent(inspect.getsource(cls))
    body = next(node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    comments = dict(_comments(source))
    meanings: dict[str, str] = {}
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = _text(below) or comments.get(node.end_lineno or 0, "")
            if text:
                meanings[node.target.id] = " ".join(text.split())
    return meanings


def _text(node: ast.stmt | None) -> str:
    """Return the first paragraph of a string that is a statement of its own; empty for any other
    statement."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return str(node.value.value).strip().split("\n\n")[0]
    return ""


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments with the numbers of their lines."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")
