"""The errors of the engine, one class for each case that a caller would handle differently.

A message names the object, the cause and the remedy, and stands on its own: the command line prints
it as it is and leaves with ``exit_code``. Errors of the history live in ``store.errors``.
"""

from __future__ import annotations

from pathlib import Path

from store.errors import CeditError

__all__ = ["CeditError"]


class RequestError(CeditError):
    """A record that cannot become a request; the quarantine file records its ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ContextExceeded(RequestError):
    """A prompt and answer of more tokens than the model reads."""


class StreamError(CeditError):
    """A stream that cannot be read any further."""


class StreamChanged(StreamError):
    """A stream whose earlier records are no longer the ones that were read."""


class StreamReplaced(StreamChanged):
    """A followed file whose name now belongs to another file."""


class ModelError(CeditError):
    """A model in which the parts that an edit needs cannot be found or used."""


class EditError(CeditError):
    """An edit that an editor could not make."""


class SharedPatch(EditError):
    """A request that cannot be taken out of a patch that it shares with others."""


class SessionClosed(CeditError):
    """A question to a session that is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"The session on {path} is closed, and its model has no edits any more: open the store "
            "again, or stay within its `with` block."
        )


class OutOfMemory(CeditError):
    """Work for which there is not enough memory. All earlier commits are untouched."""


class EncoderError(CeditError):
    """A text encoder that cannot be found, loaded or used."""


class ScopeError(CeditError):
    """A scope that cannot be trained, loaded or used."""


class PluginError(CeditError):
    """An entry of another package that cannot be used; all others can."""

    def __init__(self, kind: str, name: str, package: str, cause: str) -> None:
        super().__init__(
            f"The {kind} {name} of the package {package} cannot be used: {cause}. Update the "
            f"package, or remove it: pip uninstall {package}"
        )


class PluginWarning(UserWarning):
    """An entry of another package that is left out."""


class BenchmarksMissing(CeditError):
    """The project's benchmarks are in none of the folders that were searched."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; the error's name if it has none."""
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines()]
    message = next(filter(None, lines), type(error).__name__)
    return message.rstrip(".:")
