"""Rewriting: head moved to a state that is more than a step away.

Knows the one way there for rollback, revert, re-embed and repair: it puts the model at the state
that an operation chooses, commits the operation's revision, and forgets the run state at the old
head. If any of this fails the model goes back to head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from continual.open_store import OpenStore
from continual.patches import Patch, pack
from store import Draft, Layer, Replacement, Revision, StoreError

Choice = tuple[Sequence[Patch], bool]
"""The parts to put on for a layer, and whether they replace its own."""


def rewrite(opened: OpenStore, choose: Callable[[Sequence[Layer]], Draft]) -> Revision:
    """Commit the draft that `choose` makes of head's layers; `choose` leaves the model at the
    draft's state.

    If `choose` or the commit fails, the model goes back to head, or to base if head has lost a
    patch.
    """
    head = opened.store.head
    layers = opened.store.layers(head)
    try:
        revision = opened.store.commit(choose(layers))
    except BaseException:
        opened.forget_run_state()
        _stand_back(opened, head, layers)
        raise
    opened.states.follow(opened.store.head)
    opened.forget_run_state()
    return revision


def relaid(
    opened: OpenStore, layers: Sequence[Layer], choose: Callable[[Layer], Choice]
) -> dict[str, Replacement | None]:
    """Put layers on from base, with the parts that `choose` gives for each; return the `replaces`
    of a draft."""
    replaces: dict[str, Replacement | None] = {}
    opened.edited.take_off(0)
    for layer in layers:
        parts, is_replaced = choose(layer)
        if is_replaced:
            replaces[layer.revision.id] = Replacement(*pack(parts)) if parts else None
        opened.edited.put(parts)
        opened.edited.settle()
    return replaces


def _stand_back(opened: OpenStore, head: Revision, layers: Sequence[Layer]) -> None:
    """Put the model back at head. Reads no journal: a full disk has closed the store."""
    try:
        opened.states.stand_on(head, layers)
    except StoreError:
        opened.edited.take_off(0)
