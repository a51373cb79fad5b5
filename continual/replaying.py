"""Rebuilding: every revision's state made again from base, and compared with what it says it is.

Knows in which order patches go on; leaves reading the store's own records back to `store.check`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from continual.session import Session, open_session
from store import Revision
from store.check import Problem, verify_path


@dataclass(frozen=True)
class Rebuilt:
    """A revision, and the fingerprint that its patches give now."""

    revision: Revision
    fingerprint: str

    @property
    def is_same(self) -> bool:
        """Whether the model is bit for bit what it was."""
        return self.fingerprint == self.revision.fingerprint


def rebuild(session: Session, revisions: Iterable[Revision]) -> Iterator[Rebuilt]:
    """Put the model at each revision in turn, from base; the model is left at the last of them.

    Revisions that follow one another cost one patch each. Raises IntegrityError for a patch that
    cannot be read.
    """
    edited = session.edited
    on: str | None = None  # the revision whose state the model is in
    edited.take_off(0)
    for revision in revisions:
        if revision.parent != on or revision.replaces:
            edited.take_off(0)
            for layer in session.store.layers(revision)[:-1]:
                edited.put(session.patches(layer.patch))
        edited.put(session.patches(revision.patch))
        on = revision.id
        yield Rebuilt(revision, edited.fingerprint)


def verify(path: Path) -> list[Problem]:
    """The store's own problems; and if it has none that harm, fingerprints that come out otherwise.

    Raises NoStore, FormatVersionError, WrongBaseModel.
    """
    problems = verify_path(path)
    if not all(problem.harmless for problem in problems):
        return problems
    with open_session(path, writable=False, at="base") as session:
        rebuilt = list(rebuild(session, session.store.revisions()))
    return problems + [mismatch(made) for made in rebuilt if not made.is_same]


def mismatch(made: Rebuilt) -> Problem:
    """What is wrong where a state is not the one on record."""
    return Problem(
        f"revision {made.revision.id[:12]}",
        f"its patches give the fingerprint {made.fingerprint[:12]}, "
        f"it says {made.revision.fingerprint[:12]}",
    )
