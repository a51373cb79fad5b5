"""`cedit completion`: prints the script that lets a shell complete cedit's command lines."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cli.options import common
from cli.output import Output


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common
def command(out: Output, store: str | None, shell: str) -> None:
    """Print a shell's completion script.

    It completes commands, options, revisions and editors.

    \b
    Example:
      cedit completion bash >> ~/.bashrc
      cedit completion fish > ~/.config/fish/completions/cedit.fish
    """
    from cli.main import COMPLETE_VARIABLE, NAME, commands

    completion_class = get_completion_class(shell)
    assert completion_class is not None
    script = completion_class(commands, {}, NAME, COMPLETE_VARIABLE).source()
    out.result({"type": "completion", "shell": shell, "script": script}, script)
