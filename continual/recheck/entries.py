"""The ledger's two tables: rows at the last FFN, and the entries that they belong to.

Knows the columns, and the entry of each row; leaves filling and updating them to the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.queries.growing import GrowingTensor
from continual.queries.search import SearchedQueries
from continual.reading import Decode, RowTexts
from continual.site.rows import Rows
from continual.tasks import Encoding
from continual.verdicts import Verdict

EDIT, REPHRASE, HELD_OUT = "edit", "rephrase", "held_out"
LOCALITY, PORTABILITY, TRAIN, TEST = "locality", "portability", "train", "test"
WATCH, NEIGHBOUR, CONTINUATION = "watch", "neighbour", "continuation"
WATCHED = (WATCH, NEIGHBOUR, CONTINUATION)
ROLES = (EDIT, REPHRASE, HELD_OUT, LOCALITY, PORTABILITY, TRAIN, TEST, *WATCHED)


@dataclass(frozen=True)
class LedgerEntry:
    """A probe in the ledger."""

    owner: str  # the request's id, or the probe set's name
    role: str
    index: int  # among the owner's probes of that role
    encoding: Encoding

    @property
    def key(self) -> str:
        """The probe's name in the journal."""
        return f"{self.owner}:{self.role}:{self.index}"


class EntryTable:
    """All entries in the order in which they came. Flags and numbers lie on the CPU."""

    def __init__(self) -> None:
        self._entries: list[LedgerEntry] = []
        flags, numbers = torch.empty(0, dtype=torch.bool), torch.empty(0, dtype=torch.long)
        self._first_row, self._row_count = GrowingTensor(numbers), GrowingTensor(numbers)
        self._role = GrowingTensor(numbers)  # an index into ROLES
        self.is_active = GrowingTensor(flags)
        self.is_right = GrowingTensor(flags)  # by the model itself

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, place: int) -> LedgerEntry:
        return self._entries[place]

    @property
    def all(self) -> Sequence[LedgerEntry]:
        """The entries, active or not."""
        return self._entries

    def encodings(self, places: Tensor) -> list[Encoding]:
        """Return the encodings of the entries at some places."""
        return [self._entries[place].encoding for place in places.tolist()]

    def append(self, entries: Sequence[LedgerEntry], first_row: int) -> Tensor:
        """Take in entries whose rows begin at `first_row`; return the place of each row's entry,
        [rows]."""
        places = torch.arange(len(self), len(self) + len(entries))
        sizes = torch.tensor([len(entry.encoding.targets) for entry in entries])
        self._entries += entries
        self._first_row.append(first_row + sizes.cumsum(0) - sizes)
        self._row_count.append(sizes)
        self._role.append(torch.tensor([ROLES.index(entry.role) for entry in entries]))
        self.is_active.append(torch.ones(len(entries), dtype=torch.bool))
        self.is_right.append(torch.zeros(len(entries), dtype=torch.bool))
        return places.repeat_interleave(sizes)

    def active(self, roles: Sequence[str]) -> Tensor:
        """Return a mask, [entries] bool, of the active entries of these roles."""
        numbers = torch.tensor([ROLES.index(role) for role in roles])
        return self.is_active.rows & torch.isin(self._role.rows, numbers)

    def rows_of(self, places: Tensor) -> Tensor:
        """Return the row numbers [r] of the entries at these places, one entry after another."""
        sizes = self._row_count.rows[places]
        ends = sizes.cumsum(0)
        shift = self._first_row.rows[places] - (ends - sizes)  # from here to the rows' places
        return torch.arange(int(sizes.sum())) + shift.repeat_interleave(sizes)

    def hold_for_all(self, of_row: Tensor, places: Tensor) -> Tensor:
        """Tell for each of these entries, as [places] bool, whether a property [rows] holds for all
        its rows. Looks at these rows only."""
        sizes = self._row_count.rows[places]
        ends = sizes.cumsum(0)
        misses = (~of_row[self.rows_of(places)]).long().cumsum(0)
        counts = torch.cat([torch.zeros(1, dtype=torch.long), misses])
        return counts[ends] == counts[ends - sizes]

    def texts(self, places: Tensor, rows: Tensor, decode: Decode) -> RowTexts:
        """Return the words read up to these rows [r], of the entries at `places` [r]."""
        offsets = (rows - self._first_row.rows[places]).tolist()
        prefixes = [
            (encoding.ids, encoding.positions[offset] + 1)
            for encoding, offset in zip(self.encodings(places), offsets, strict=True)
        ]
        return RowTexts(decode, prefixes)


class RowTable:
    """The rows of all entries, one entry's after another's. States lie on the model's device, flags
    and numbers on the CPU."""

    def __init__(self, like: Tensor) -> None:
        """`like` [.., d] gives width and device."""
        self.query, self._hidden = SearchedQueries(like), GrowingTensor(like)
        self._target = GrowingTensor(like.new_empty(0, dtype=torch.long))
        self._entry = GrowingTensor(torch.empty(0, dtype=torch.long))
        self._right = GrowingTensor(torch.empty(0, dtype=torch.bool))
        self._close = GrowingTensor(torch.empty(0, dtype=torch.bool))

    def __len__(self) -> int:
        return len(self._entry)

    @property
    def entry(self) -> Tensor:
        """[rows] the place of the entry that each row belongs to."""
        return self._entry.rows

    @property
    def verdict(self) -> Verdict:
        """The latest outcome of each row."""
        return Verdict(self._right.rows, self._close.rows)

    @property
    def all(self) -> Rows:
        """All rows, without their texts."""
        return Rows(self.query.rows, self._hidden.rows, self._target.rows)

    def at(self, index: Tensor, texts: RowTexts) -> Rows:
        """Return the rows at some places, with their texts."""
        hidden, targets = self._hidden.rows[index], self._target.rows[index]
        return Rows(self.query.rows[index], hidden, targets, texts)

    def append(self, rows: Rows, entries: Tensor) -> None:
        """Take in rows, and the places of their entries [rows]; none is judged yet."""
        self.query.append(rows.query)
        self._hidden.append(rows.hidden)
        self._target.append(rows.targets)
        self._entry.append(entries)
        self._right.append(torch.zeros(len(rows), dtype=torch.bool))
        self._close.append(torch.zeros(len(rows), dtype=torch.bool))

    def replace(self, rows: Rows) -> None:
        """Replace the states of all rows."""
        self.query.replace(rows.query)
        self._hidden[slice(None)] = rows.hidden

    def put(self, index: Tensor, rows: Rows) -> None:
        """Replace the states of the rows at `index` [r]."""
        self.query.put(index, rows.query)
        self._hidden[index] = rows.hidden

    def judged(self, index: Tensor, verdict: Verdict) -> Verdict:
        """Return the outcomes of all rows, with those at `index` as in `verdict`."""
        right, close = self._right.rows.clone(), self._close.rows.clone()
        right[index], close[index] = verdict.right.cpu(), verdict.close.cpu()
        return Verdict(right, close)

    def judge(self, index: Tensor, verdict: Verdict) -> None:
        """Keep the outcomes of the rows at `index` [r]."""
        self._right[index] = verdict.right.cpu()
        self._close[index] = verdict.close.cpu()
