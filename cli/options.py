"""The options and arguments that commands share: `--store`, `--json`, names of revisions.

Offers a shell the completions of them.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.output import Output, short

if TYPE_CHECKING:
    from continual.execution import Executor

RECENT = 50  # revisions that a shell is offered
Function = Callable[..., Any]


def common(function: Function) -> Function:
    """Add `--store` and `--json`; the command gets `out`, and the value of `--store`."""

    @click.option(
        "--store", type=click.Path(), help="The store's folder (default: as git finds its own)."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON Lines.")
    @functools.wraps(function)
    def command(as_json: bool, **options: Any) -> Any:
        return function(out=Output(as_json), **options)

    return command


def with_workers(function: Function) -> Function:
    """Add `--workers` and `--cluster`; the command gets `executor`, whose workers end with the
    command."""

    @click.option(
        "--workers",
        type=click.IntRange(1),
        metavar="N",
        help="Run passes over many inputs in N processes, each with the model (default: in this "
        "one). The results have the same bits.",
    )
    @click.option(
        "--cluster",
        metavar="ADDRESS",
        help="Have the workers on a cluster of Ray's: auto, ray://HOST:PORT, or local (needs "
        "cedit[ray]; one for each processor unless --workers says how many).",
    )
    @functools.wraps(function)
    def command(workers: int | None, cluster: str | None, **options: Any) -> Any:
        executor = click.get_current_context().with_resource(_executor(workers, cluster))
        return function(executor=executor, **options)

    return command


def _executor(workers: int | None, cluster: str | None) -> AbstractContextManager[Executor]:
    """Return an executor of a command; torch is imported only if there are workers. Raises
    CeditError for a cluster that is not there."""
    if workers is None and cluster is None:
        from continual.execution.local import LOCAL

        return nullcontext(LOCAL)
    from continual.workers.choice import executor_of

    return executor_of(workers, cluster)


settings_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="EDITOR.KEY=VALUE",
    help="A setting of an editor, for this run (repeatable).",
)
"""Adds `--set`; the command gets `changes`, for `editor_settings`."""


def editor_settings(changes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the settings that --set gives, by editor. A value is TOML, or else a text. Raises
    UsageError."""
    tables: dict[str, dict[str, Any]] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        editor, dot, key = name.strip().partition(".")
        if not (equals and dot and editor and key):
            raise click.UsageError(f"--set {change}: write EDITOR.KEY=VALUE, as memit.place=end.")
        tables.setdefault(editor, {})[key] = _toml_or_text(value.strip())
    return tables


def _toml_or_text(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def find_store(store: str | None) -> Path:
    """Return the store's folder. Raises NoStore."""
    from store import Store

    return Store.find(explicit=store)


# -- errors are raised at once, before the model is loaded


def require_revision(store: Path, name: str) -> None:
    """Raise NoStore or UnknownRevision if there is no such store or revision."""
    from store import Store

    with Store.open(store) as opened:
        opened.revision(name)


def require_writable(store: Path) -> None:
    """Raise NoStore if there is no store, and StoreLocked if another process writes to it."""
    from store import Store

    Store.open(store, writable=True).close()


class EditorChain(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Editors and chains by name, joined by commas."""

    name = "editors"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text as it is. Fails for a name that no editor and no chain has."""
        editors = editor_lines()
        for name in filter(None, map(str.strip, value.split(","))):
            if name not in editors:
                nearest = get_close_matches(name, editors, n=1)
                hint = (
                    f" Did you mean {nearest[0]}?" if nearest else f" Known: {', '.join(editors)}."
                )
                self.fail(f"there is no editor {name!r}.{hint}", param, ctx)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[Any]:
        """Return the editors and chains that can follow the last comma, each with its summary."""
        prefix, comma, start = incomplete.rpartition(",")
        return _completions(editor_lines(), start, before=prefix + comma)


# -- completing in a shell


def revision_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the matching names: head, base, the tags, and the latest ids."""
    return [name for name in _known_names(ctx.params.get("store")) if name.startswith(incomplete)]


def request_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Return the ids of the latest requests, with their prompts."""
    return _completions(_known_requests(ctx.params.get("store")), incomplete)


def ranges(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return names of revisions, at the beginning of a range and behind its dots."""
    older, dots, start = incomplete.rpartition("..")
    return [older + dots + name for name in revision_names(ctx, param, start)]


def editor_lines() -> dict[str, str]:
    """Return the summary of every editor and chain by its name."""
    from continual.choices import CHAINS, EDITORS

    return {**EDITORS.summaries, **{name: chain.summary for name, chain in CHAINS.items()}}


class TaskName(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """The name of a task."""

    name = "task"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the names in the form in which click shows a choice."""
        from continual.choices import TASKS

        return f"[{'|'.join(TASKS)}]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name as it is. Fails for a name that no task has."""
        from continual.choices import TASKS

        if value not in TASKS:
            self.fail(f"{value!r} is not one of {', '.join(TASKS)}.", param, ctx)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[Any]:
        """Return the tasks with their summaries."""
        from continual.choices import TASKS

        return _completions(TASKS.summaries, incomplete)


def _completions(lines: Mapping[str, str], begun: str, before: str = "") -> list[Any]:
    """Return the completions of `begun`: each matching name, after the text `before`, with its
    line of help."""
    from click.shell_completion import CompletionItem

    return [
        CompletionItem(before + name, help=line)
        for name, line in lines.items()
        if name.startswith(begun)
    ]


def _known_names(store: str | None) -> list[str]:
    """Return names of revisions; none if there is no store to read."""
    from store import Store, StoreError

    try:
        with Store.open(find_store(store)) as opened:
            revisions = opened.revisions(max(0, opened.length - RECENT))
            return ["head", "base", *opened.tags(), *(short(revision.id) for revision in revisions)]
    except StoreError:
        return []


def _known_requests(store: str | None) -> dict[str, str]:
    """Return prompts by id, the latest first; none if there is no store to read."""
    from continual.prompts import shown_prompt
    from store import Store, StoreError

    try:
        with Store.open(find_store(store)) as opened:
            revisions = list(opened.revisions(max(0, opened.length - RECENT)))
            ids = [
                r["id"] for revision in revisions[::-1] for r in revision.body.get("requests", ())
            ]
            return {identity: shown_prompt(opened.request(identity)) for identity in ids}
    except StoreError:
        return {}
