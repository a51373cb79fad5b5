"""The names of a served model: its own, or with a revision behind an @.

`NAME` is head; `NAME@head`, `NAME@base`, `NAME@TAG`, `NAME@REVISION` are as `cedit ask --at` names
revisions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from continual.errors import CeditError
from continual.settings import StoreSettings
from store import Store

_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
NAME_CHARACTERS_MAX = 256


class UnknownModel(CeditError):
    """A model name that is not served."""


@dataclass(frozen=True)
class ServedName:
    """A name that a client may ask for."""

    name: str
    revision: str
    fingerprint: str
    root: str
    parent: str | None


def default_name(store: Store) -> str:
    """Return the name of a store's base model: that of its folder, or of the embedded model."""
    name = Path(StoreSettings.of(store.settings).model.path).name
    return _UNFIT.sub("-", name).strip("-") or "model"


def revision_of(model: str, served: str) -> str:
    """Return the name of the revision that a model name stands for. Raises UnknownModel for a model
    of another name; the revision itself may be unknown."""
    name, _, revision = model[:NAME_CHARACTERS_MAX].partition("@")
    if name != served:
        raise UnknownModel(
            f"There is no model {model[:NAME_CHARACTERS_MAX]!r}: this server has {served}, "
            f"{served}@base, and {served}@REVISION."
        )
    return revision or "head"


def served_names(store: Store, served: str) -> Iterator[ServedName]:
    """Yield the names of head, of base, and of the tags."""
    head = store.head
    yield ServedName(served, head.id, head.fingerprint, served, f"{served}@base")
    yield ServedName(f"{served}@base", store.base.id, store.base.fingerprint, served, None)
    for tag, identity in sorted(store.tags().items()):
        revision = store.revision(identity)
        parent = f"{served}@base"
        yield ServedName(f"{served}@{tag}", identity, revision.fingerprint, served, parent)
