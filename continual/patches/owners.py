"""The owners of a patch's rows: the request of each neuron, or of each column of an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from continual.errors import EditError


def others_places(owners: Sequence[str], request_id: str) -> list[int]:
    """Return the places of the rows that other requests own."""
    return [place for place, owner in enumerate(owners) if owner != request_id]


def require_owners(owners: tuple[str, ...], count: int, rows: str) -> None:
    """Raise EditError unless there is an owner for each row."""
    if len(owners) != count or not all(isinstance(owner, str) for owner in owners):
        raise EditError(f"A patch of {count} {rows} names the owners of {len(owners)}.")


def by_kind(kinds: Sequence[str], owners: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Return the owners of rows by the rows' kind; "" for rows whose owners are not known."""
    row_owners = owners or ("",) * len(kinds)
    return {
        kind: tuple(owner for k, owner in zip(kinds, row_owners, strict=False) if k == kind)
        for kind in dict.fromkeys(kinds)
    }
