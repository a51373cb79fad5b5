"""The owners of a patch's rows: the request of each neuron, or of each column of an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from continual.errors import EditError, SharedPatch


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


def require_distinct(owners: tuple[str, ...], patch: str) -> None:
    """Raise EditError unless the owners of a shared patch are requests, each named once."""
    if not all(isinstance(owner, str) for owner in owners) or len(set(owners)) < len(owners):
        raise EditError(f"A {patch} names an owner twice, or one that is no request.")


def goes_whole(owners: Sequence[str], request_id: str, patch: str) -> bool:
    """Tell whether a shared patch goes with a request: True for its only owner, False for none of
    its owners. Raises SharedPatch if others own it too."""
    if request_id not in owners:
        return False
    peers = [owner for owner in owners if owner != request_id]
    if peers:
        raise SharedPatch(
            f"Request {request_id} shares {patch} with {len(peers)} others, whose "
            f"gradients nothing tells apart ({', '.join(peers[:3])}"
            f"{', …' if len(peers) > 3 else ''}). Make its step again without it, by `cedit "
            "revert --resolve`, or go back to before it, by `cedit rollback`."
        )
    return True
