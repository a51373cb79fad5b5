"""An encoder's vectors in the store's cache: each text is embedded once in its life.

Safe to delete; damaged vectors, or those of another encoder, are not loaded.
"""

from __future__ import annotations

import torch

from continual.memory.encoder import SentenceEncoder
from store import Store, StoreError

NAME = "memory/texts"


def load(store: Store, encoder: SentenceEncoder) -> None:
    """Remind an encoder of the vectors that it has made for this store."""
    try:
        entry = store.cached(NAME)
    except StoreError:
        return
    if entry is not None and entry.meta.get("encoder") == encoder.fingerprint:
        texts, vectors = entry.meta["texts"], entry.tensors["vectors"]
        encoder.remind(dict(zip(texts, vectors, strict=True)))


def save(store: Store, encoder: SentenceEncoder) -> None:
    """Keep the vectors that an encoder remembers, if the store is writable and has fewer."""
    vectors = encoder.remembered
    if not store.writable or not vectors or len(vectors) <= _kept(store, encoder):
        return
    texts = list(vectors)
    meta = {"encoder": encoder.fingerprint, "texts": texts}
    try:
        store.put_cached(NAME, {"vectors": torch.stack([vectors[t] for t in texts])}, meta)
    except StoreError:  # nothing depends on it
        return


def _kept(store: Store, encoder: SentenceEncoder) -> int:
    try:
        entry = store.cached(NAME)
    except StoreError:
        return 0
    is_current = entry is not None and entry.meta.get("encoder") == encoder.fingerprint
    return len(entry.meta["texts"]) if entry is not None and is_current else 0
