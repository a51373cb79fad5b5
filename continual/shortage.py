"""Memory that runs out, told as what it is.

PyTorch, oneDNN, cuBLAS and the system each say it in another way, mostly by an error that could
mean anything: a few words of theirs tell.
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


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, _BY_WORDS) and any(word in text for word in _WORDS)
    )


@contextmanager
def shortage_told(remedy: str) -> Iterator[None]:
    """Raises OutOfMemory, with what can be done, where memory runs out inside."""
    try:
        yield
    except Exception as error:
        if not is_shortage(error):
            raise
        raise OutOfMemory(f"{told(error)}: {remedy}") from error


def told(error: BaseException) -> str:
    """What happened, in the words of whoever noticed, if there are any."""
    words = str(error)
    return f"memory ran out ({words})" if words else "memory ran out"
