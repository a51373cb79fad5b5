"""Durable history: records, tensors and files; nothing of models, tokens or terminals.

`Store` is the face; `check` reads everything back. A name is imported when it is first used, so
that the errors can be had without the journal's library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store.blobs import BlobRef, digest_of
    from store.durable import write_durably
    from store.errors import CeditError, NoStore, StoreError, UnknownRevision
    from store.revisions import Draft, Layer, Replacement, Revision, layers, parse_range
    from store.snapshots import Segment, Segmenter
    from store.store import Store

__distribution__ = "cedit"
__all__ = [
    "BlobRef",
    "CeditError",
    "Draft",
    "Layer",
    "NoStore",
    "Replacement",
    "Revision",
    "Segment",
    "Segmenter",
    "Store",
    "StoreError",
    "UnknownRevision",
    "digest_of",
    "layers",
    "parse_range",
    "write_durably",
]

_HOMES = {
    **dict.fromkeys(("BlobRef", "digest_of"), "blobs"),
    "write_durably": "durable",
    **dict.fromkeys(("CeditError", "NoStore", "StoreError", "UnknownRevision"), "errors"),
    **dict.fromkeys(
        ("Draft", "Layer", "Replacement", "Revision", "layers", "parse_range"), "revisions"
    ),
    **dict.fromkeys(("Segment", "Segmenter"), "snapshots"),
    "Store": "store",
}


def __getattr__(name: str) -> Any:
    """Import a name of the face when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
