"""Asking before something is lost: on a terminal a question, elsewhere an option."""

from __future__ import annotations

import sys

import click


def confirmed(question: str, is_said: bool, options: str) -> bool:
    """True where it was said, or is answered with yes. Raises click.Abort for another answer, and
    UsageError, which names the options, where nobody can be asked."""
    if is_said:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"Nobody can be asked here: give {options}.")
    return click.confirm(question, abort=True, err=True)
