"""Durable history: records, tensors and files; nothing of models, tokens or terminals.

`Store` is the face; `check` reads everything back.
"""

from store.blobs import BlobRef
from store.errors import StoreError
from store.revisions import Draft, Revision, parse_range
from store.store import Store

__all__ = ["BlobRef", "Draft", "Revision", "Store", "StoreError", "parse_range"]
