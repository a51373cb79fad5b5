"""Confirms a loss before it happens: by a question on a terminal, elsewhere by an option."""

from __future__ import annotations

import sys

import click


def confirmed(question: str, is_said: bool, options: str) -> bool:
    """Return True if an option said yes already, or a person answers yes. Raises click.Abort for
    another answer, and UsageError, which names the options, where nobody can be asked."""
    if is_said:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"Nobody can be asked here: give {options}.")
    return click.confirm(question, abort=True, err=True)
