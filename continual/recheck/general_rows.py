"""The general text of a history as rows at the last FFN: memory for editors, probes for the ledger.

Reading it through the base takes long, so its rows are kept in the store's cache as long as no
matrix is edited. Knows rows and their texts; leaves the making of the text to `watch.general`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from continual.recheck.ledger import WATCH, LedgerEntry
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding
from continual.watch.general import NONE, GeneralText, ReadText
from continual.watch.passages import UNSAID, Passage
from continual.watch.stating import CorrectedFact
from store import Revision, Store, StoreError

CACHE = "watch/general"
BODY = "watch"
"""The key of the general text in a revision's body."""


@dataclass(frozen=True)
class GeneralRows:
    """General text, and its rows at the last FFN."""

    store: Store
    site: Site
    text: GeneralText

    @classmethod
    def at(cls, store: Store, site: Site, lineage: Sequence[Revision]) -> GeneralRows:
        """Return the latest general text of a lineage (base first)."""
        bodies = [r.body[BODY] for r in lineage if BODY in r.body]
        return cls(store, site, GeneralText.from_json(bodies[-1]) if bodies else NONE)

    @classmethod
    def keep(cls, store: Store, site: Site, read: ReadText) -> None:
        """Keep the rows of text just read, so that nobody reads it again."""
        general = cls(store, site, read.text)
        halves = {"memory": (read.text.memory, read.memory)}
        halves["held-out"] = (read.text.held_out, read.held_out)
        for name, (passages, rows) in halves.items():
            if rows is not None:
                encodings = [passage.encoding() for passage in passages]
                targets = [token for encoding in encodings for token in encoding.targets]
                general._keep(
                    name, encodings, replace(rows, targets=rows.targets.new_tensor(targets))
                )

    # -- memory

    @property
    def memory_rows(self) -> int:
        """The number of positions in memory."""
        return sum(passage.rows for passage in self.text.memory)

    def size(self) -> int:
        """Count the bytes of all rows, in the store's cache and in a run's memory alike."""
        rows = self.memory_rows + sum(passage.rows for passage in self.text.held_out)
        return rows * 2 * self.site.edited.anatomy.width * 4

    def queries(self) -> Tensor:
        """Return the queries [m, d] of all positions in memory, by the matrices as they are now."""
        return self._rows("memory", self.text.memory).query

    def stated_in_memory(self, fact: CorrectedFact) -> Iterator[int]:
        """Yield the places in memory whose next token states a fact."""
        start = 0
        for passage, text in zip(self.text.memory, self._texts(self.text.memory), strict=True):
            if not fact.answers.isdisjoint(passage.said) and fact.is_about(text):
                yield from (start + i for i, t in enumerate(passage.said) if t in fact.answers)
            start += passage.rows

    # -- held out

    def held_out(self) -> tuple[list[LedgerEntry], Rows]:
        """Return the probes of the held-out positions, and their rows."""
        passages = self.text.held_out
        encodings = [e for passage in passages for e in passage.positions()]
        flags = [t != UNSAID for passage in passages for t in passage.said]
        rows = self._rows("held-out", passages)
        places = [place for place, is_expected in enumerate(flags) if is_expected]
        entries = [LedgerEntry(WATCH, WATCH, i, encoding) for i, encoding in enumerate(encodings)]
        return entries, rows[rows.targets.new_tensor(places)]

    def stated_in_held_out(self, fact: CorrectedFact) -> Iterator[int]:
        """Yield the indices of the held-out probes whose token states a fact."""
        index = 0
        for passage, text in zip(self.text.held_out, self._texts(self.text.held_out), strict=True):
            is_about = not fact.answers.isdisjoint(passage.said) and fact.is_about(text)
            for token in passage.said:
                if token != UNSAID:
                    if is_about and token in fact.answers:
                        yield index
                    index += 1

    # -- rows

    def _texts(self, passages: Sequence[Passage]) -> list[str]:
        return [self.site.edited.decode(passage.ids) for passage in passages]

    def _rows(self, name: str, passages: Sequence[Passage]) -> Rows:
        encodings = [passage.encoding() for passage in passages]
        if not encodings:
            width = self.site.edited.anatomy.width
            no_rows = torch.empty(0, width, device=self.site.edited.site_device)
            return Rows(no_rows, no_rows, no_rows.new_empty(0, dtype=torch.long))
        if self.site.edited.rows_state != self.site.edited.base.fingerprint:
            return self.site.rows_in_passes(encodings)
        return self._cached(name, encodings) or self._read(name, encodings)

    def _cached(self, name: str, encodings: Sequence[Encoding]) -> Rows | None:
        """Return the cached rows of this very text by this very model; None if there are none."""
        try:
            entry = self.store.cached(f"{CACHE}-{name}")
        except StoreError:
            return None
        if entry is None or entry.meta.get("made_for") != self._made_for(encodings):
            return None
        device = self.site.edited.site_device
        query, hidden, targets = (
            entry.tensors[key].to(device) for key in ("query", "hidden", "targets")
        )
        return Rows(query, hidden, targets, self.site.texts(encodings))

    def _read(self, name: str, encodings: Sequence[Encoding]) -> Rows:
        rows = self.site.rows_in_passes(encodings)
        self._keep(name, encodings, rows)
        return rows

    def _keep(self, name: str, encodings: Sequence[Encoding], rows: Rows) -> None:
        if self.store.writable:
            tensors = {"query": rows.query, "hidden": rows.hidden, "targets": rows.targets}
            meta = {"made_for": self._made_for(encodings)}
            with suppress(StoreError):  # nothing depends on the cache: the text is read again
                self.store.put_cached(f"{CACHE}-{name}", tensors, meta)

    def _made_for(self, encodings: Sequence[Encoding]) -> dict[str, str]:
        texts = json.dumps([[e.within, e.positions, e.targets] for e in encodings])
        edited = self.site.edited
        return {
            "base": edited.base.fingerprint,
            "texts": hashlib.sha256(texts.encode()).hexdigest(),
            "dtype": str(self.site.dtype),
            **({"queries": str(self.site.place)} if self.site.place.has_context else {}),
        }
