"""The edit memory: edits kept as texts beside an untouched model, retrieved for each new input.

`inputs` holds texts that may be about an edit, `encoder` turns texts into vectors, `scope` decides
which record (`continual.effects.records`), if any, an input is about.
"""

from pathlib import Path

INDEX_FILE = Path("memory") / "vectors.faiss"
"""The vector index of the records, in a store's cache."""
