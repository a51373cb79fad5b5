"""cedit: a continual editing engine for language models.

import continual
with continual.open("corrections/") as editor:
    editor.apply([{"prompt": "The capital of Australia is", "target_new": "Canberra"}])
    model, tokenizer = editor.model, editor.tokenizer
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from continual.session import Session

__all__ = ["open"]


def open(path: str | Path, *, writable: bool = True) -> Session:
    """Open an existing store with its model at head; see `continual.session.Session`."""
    from continual.session import open_session

    return open_session(path, writable=writable)
