"""The command `cedit`: finds the named command, runs it, and ends with its exit code.

Knows the names of the commands, and the exit code of every kind of failure. Leaves each command to
its own file, which is imported only when it is needed.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import click
from click.shell_completion import shell_complete

NAME = "cedit"
COMMANDS = (
    "init",
    "watch",
    "calibrate",
    "apply",
    "fix",
    "quarantine",
    "ask",
    "serve",
    "queue",
    "neurons",
    "status",
    "list",
    "find",
    "log",
    "show",
    "diff",
    "rollback",
    "revert",
    "consolidate",
    "tag",
    "replay",
    "rebase",
    "reembed",
    "settings",
    "verify",
    "relocate",
    "gc",
    "save",
    "corrections",
    "export",
    "import",
    "report",
    "migrate",
    "trace",
    "train",
    "bench",
    "demo",
    "completion",
)
COMPLETE_VARIABLE = f"_{NAME.upper()}_COMPLETE"
TRACEBACK_VARIABLE = "CEDIT_TRACEBACK"
INTERRUPTED, BROKEN_PIPE = 130, 141
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


class Commands(click.Group):
    """The commands, imported one by one, in their usual order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names."""
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command as click does, but suggest the nearest name for a mistyped one."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            nearest = get_close_matches(args[0], COMMANDS, n=1)
            meant = f" Did you mean {nearest[0]}?" if nearest else ""
            raise click.UsageError(f"There is no command {args[0]!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"cli.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


@click.group(
    NAME,
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "CEDIT"},
    epilog="""\b
    A store is found as git finds its own: --store, CEDIT_STORE, or the nearest .cedit
    folder upward. Revisions are named as in git: head, head~2, base, the start of an
    id, a tag, @7 for entry 7 of the journal; A..B is a range.

    \b
    An option can be set in the environment too: CEDIT_APPLY_EDITOR for apply --editor.

    \b
    Exit codes: 0 fine, 1 error, 2 usage, 3 partly done (requests failed or were
    quarantined), 10 no store, 11 locked, 12 format version, 20 integrity, 21 wrong
    base model, 130 interrupted, 141 broken pipe.

    \b
    Start here:  cedit demo
    """,
)
@click.version_option(package_name=NAME)
def commands() -> None:
    """Keep a language model right: small corrections with a durable, reversible history."""


def main() -> None:
    """Run cedit with the process's own arguments and leave with its exit code."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run cedit and return its exit code. A failure prints one line on standard error."""
    from cli.output import replace_missing

    replace_missing()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with _plugin_warnings():
            code = _invoke(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        _forget_stdout()
        return BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return INTERRUPTED
    except Exception as error:
        return _failed(error)


def _invoke(arguments: list[str]) -> int:
    """Run a command as click's own `main` does, which would treat a broken pipe as an error."""
    if instruction := os.environ.get(COMPLETE_VARIABLE):
        return shell_complete(commands, {}, NAME, COMPLETE_VARIABLE, instruction)
    try:
        with commands.make_context(NAME, arguments) as context:
            return int(commands.invoke(context) or 0)
    except click.exceptions.Exit as end:
        return end.exit_code


@contextmanager
def _plugin_warnings() -> Iterator[None]:
    """Say in one line that another package's entry is left out; nothing while a shell completes."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def say(
            message: Warning | str, category: type[Warning], *place: Any, **options: Any
        ) -> None:
            from continual.errors import PluginWarning

            if not issubclass(category, PluginWarning):
                show(message, category, *place, **options)
            elif COMPLETE_VARIABLE not in os.environ:
                _say(f"warning: {message}")

        warnings.showwarning = say
        yield


def _failed(error: Exception) -> int:
    """Print an error, and return its exit code. An error for people has an exit code of its own."""
    from continual.out_of_memory import is_out_of_memory, message_of

    code = getattr(error, "exit_code", None)
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    if isinstance(code, int):
        _say(str(error))
        return code
    if is_out_of_memory(error):
        _say(f"{message_of(error)}: it takes a machine or a device that has more of it free")
        return 1
    _say(
        f"{type(error).__name__}: {error}: this is a bug "
        f"({TRACEBACK_VARIABLE}=1 shows where; please report it)"
    )
    return 1


def _say(text: str) -> None:
    from cli.output import one_line

    print(f"{NAME}: {one_line(text)}", file=sys.stderr)


def _forget_stdout() -> None:
    """Send standard output to nowhere, so that nothing more reaches the closed pipe, not even when
    the process ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    main()
