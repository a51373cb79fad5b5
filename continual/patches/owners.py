"""Whose the rows of a patch are: neurons, or columns of a low-rank update, by request."""

from __future__ import annotations

from collections.abc import Sequence

from continual.errors import EditError


def others_places(owners: Sequence[str], request_id: str) -> list[int]:
    """The places of the rows that are not a request's."""
    return [place for place, owner in enumerate(owners) if owner != request_id]


def require_owners(owners: tuple[str, ...], count: int, rows: str) -> None:
    """Raises EditError unless there is an owner for each row."""
    if len(owners) != count or not all(isinstance(owner, str) for owner in owners):
        raise EditError(f"A patch of {count} {rows} names the owners of {len(owners)}.")
