"""Recognises errors that mean that memory ran out.

PyTorch, oneDNN, cuBLAS and the system each report it in another way, mostly by an error of a
general kind: a few words in its message tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from continual.errors import OutOfMemory

_BY_WORDS = (RuntimeError, OSError, ImportError)
_WORDS = (
    "out of memory",  # CUDA, MPS
    "allocate memory",  # the system, and PyTorch on a CPU
    "bad_alloc",
    "alloc_failed",  # cuBLAS, cuDNN
    "could not create a primitive",  # oneDNN
    "can't start new thread",  # there is no room for its stack
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, _BY_WORDS) and any(word in text for word in _WORDS)
    )


@contextmanager
def remedy_named(remedy: str) -> Iterator[None]:
    """Raise OutOfMemory with a remedy if memory runs out while the `with` lasts."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{message_of(error)}: {remedy}") from error


def message_of(error: BaseException) -> str:
    """Return that memory ran out, with the message of the error, if it has one."""
    words = str(error)
    return f"memory ran out ({words})" if words else "memory ran out"
