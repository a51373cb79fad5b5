"""Tensors that grow by rows, or by columns, at the cost of the added part."""

from __future__ import annotations

from torch import Tensor

FIRST_CAPACITY = 64


class GrowingTensor:
    """Rows of one shape in one piece of memory that doubles when it is full."""

    def __init__(self, like: Tensor) -> None:
        """Begin without rows. `like` [.., *row] gives the shape of a row, dtype and device."""
        self._buffer = like.new_empty(FIRST_CAPACITY, *like.shape[1:])
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def rows(self) -> Tensor:
        """All rows, a view: later growth may leave it behind."""
        return self._buffer[: self._size]

    def append(self, rows: Tensor) -> Tensor:
        """Put rows at the end, and return them as they stand there."""
        start, end = self._size, self._size + len(rows)
        if end > len(self._buffer):
            buffer = self._buffer.new_empty(max(end, 2 * len(self._buffer)), *rows.shape[1:])
            buffer[:start] = self.rows
            self._buffer = buffer
        self._buffer[start:end] = rows
        self._size = end
        return self._buffer[start:end]

    def truncate(self, size: int) -> None:
        """Forget all rows but the first `size`; a larger `size` after that brings them back."""
        self._size = size

    def cut(self, first: int, last: int) -> None:
        """Take the rows [first, last) out; the others keep their order."""
        tail = self.rows[last:].clone()
        self._buffer[first : first + len(tail)] = tail
        self._size -= last - first

    def __setitem__(self, index: Tensor | slice, value: Tensor | bool) -> None:
        self.rows[index] = value


class GrowingColumns:
    """Columns [r, n] that grow likewise; each row lies in one piece for readers that go by row."""

    def __init__(self, like: Tensor) -> None:
        """Begin without columns. `like` [r, ..] gives the number of rows, dtype and device."""
        self._buffer = like.new_empty(len(like), FIRST_CAPACITY)
        self._size = 0

    @property
    def columns(self) -> Tensor:
        """[r, n] a view: later growth may leave it behind."""
        return self._buffer[:, : self._size]

    def append(self, columns: Tensor) -> None:
        """Put columns [r, c] at the end."""
        start, end = self._size, self._size + columns.shape[1]
        if end > self._buffer.shape[1]:
            capacity = max(end, 2 * self._buffer.shape[1])
            buffer = self._buffer.new_empty(len(self._buffer), capacity)
            buffer[:, :start] = self.columns
            self._buffer = buffer
        self._buffer[:, start:end] = columns
        self._size = end

    def cut(self, first: int, last: int) -> None:
        """Take the columns [first, last) out; the others keep their order."""
        tail = self.columns[:, last:].clone()
        self._buffer[:, first : first + tail.shape[1]] = tail
        self._size -= last - first
