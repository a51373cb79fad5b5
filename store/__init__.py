"""Durable history: records, tensors and files; nothing of models, tokens or terminals.

`Store` is the face; `check` reads everything back.
"""

from store.blobs import BlobRef
from store.durable import write_durably
from store.errors import StoreError
from store.revisions import Draft, Layer, Replacement, Revision, layers, parse_range
from store.snapshots import Segment, Segmenter
from store.store import Store

__all__ = [
    "BlobRef",
    "Draft",
    "Layer",
    "Replacement",
    "Revision",
    "Segment",
    "Segmenter",
    "Store",
    "StoreError",
    "layers",
    "parse_range",
    "write_durably",
]
