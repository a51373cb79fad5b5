"""`cedit settings`: prints every setting with its meaning and its value in a store."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import click

from cli.options import common, find_store
from cli.output import Output

WIDTH = 78  # of the comments


@click.command("settings")
@click.argument("table", required=False)
@click.option("--defaults", is_flag=True, help="As a store is without any of its own.")
@common
def command(out: Output, store: str | None, table: str | None, defaults: bool) -> None:
    """Print the settings as TOML, each with its meaning.

    The lines can be copied into the store's cedit.toml and changed there; settings of the store
    have its values. TABLE prints one table alone: model, run, watch, memory, or an editor.

    With --json there is a line for each, {"type":"setting","table","key","value","meaning","set"}.

    \b
    Example:
      cedit settings watch
      cedit settings editor.memit
    """
    from continual.described import table_names

    names = table_names()
    selection = names if table is None else [_named(table, names)]
    store_tables = {} if defaults else _own(store)
    for record in (
        record for name in selection for record in _records(name, _within(store_tables, name))
    ):
        out.record(record)
    for name in selection:
        out.text(*_lines(name, list(_records(name, _within(store_tables, name)))))


def _named(table: str, names: list[str]) -> str:
    """Return the full name of a table; an editor's name stands for its table. Raises UsageError."""
    for name in (table, f"editor.{table}"):
        if name in names:
            return name
    nearest = get_close_matches(table, names, n=1)
    advice = f"Did you mean {nearest[0]}?" if nearest else f"There are {', '.join(names)}."
    raise click.UsageError(f"There is no table {table!r}. {advice}")


def _own(store: str | None) -> Mapping[str, Any]:
    """Return the store's settings; none if no store is named and none is found. Raises NoStore."""
    from store import NoStore, Store

    try:
        with Store.open(find_store(store)) as opened:
            return opened.settings
    except NoStore:
        if store is not None:
            raise
        return {}


def _within(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the values of a table, whose name may have dots; empty if it is not set."""
    table: Any = settings
    for part in name.split("."):
        table = table.get(part, {})
    return dict(table)


def _records(name: str, own: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    from continual.described import settings_of, table_class

    for setting in settings_of(table_class(name)):
        default = None if setting.is_required else setting.default
        yield {
            "type": "setting",
            "table": name,
            "key": setting.name,
            "value": own.get(setting.name, default),
            "meaning": setting.meaning,
            "set": setting.name in own,
        }


def _lines(name: str, records: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table as TOML; a setting without a value is a comment."""
    from continual.described import toml_value

    yield f"[{name}]"
    for record in records:
        yield from textwrap.wrap(
            record["meaning"], WIDTH, initial_indent="# ", subsequent_indent="# "
        )
        value = toml_value(record["value"])
        yield f"{record['key']} = {value}" if value else f"# {record['key']} ="
    yield ""
