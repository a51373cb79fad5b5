"""Patches that stand on a model only while an editor makes the next ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from continual.model import EditedModel


@contextmanager
def scaffold(edited: EditedModel) -> Iterator[None]:
    """Take all patches off again that are put on within the `with` block."""
    depth = edited.depth
    try:
        yield
    finally:
        edited.take_off(depth)
