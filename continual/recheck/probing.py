"""The probes of requests attempted for the first time, besides the learned prompts.

They go through the model together, before the edit. Of many requests only the locality probes do,
whose answers have to be known by then; the others are read behind the edit, as an edit of matrices
moves all rows. Knows the expected answer of a probe; leaves outcomes to the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from continual.memory.answers import AnswerJudge
from continual.recheck.encoded_requests import EncodedRequest, ExpectedAnswers
from continual.recheck.ledger import LOCALITY, LedgerEntry
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding

MANY = 8  # new requests: their probes fill passes, however they are divided


@dataclass(frozen=True)
class Probed:
    """The other probes of a request, read before its edit."""

    expected: ExpectedAnswers  # the answers that its locality prompts have to keep
    rows: Rows | None  # of all of them, in the order of `EncodedRequest.other_entries`, if read


@dataclass(frozen=True)
class NewProbes:
    """All probes of a request, and their rows by the model as it is now; None if not read yet."""

    encoded_request: EncodedRequest
    expected: ExpectedAnswers
    learned: Rows | None
    others: Rows | None

    def groups(self) -> tuple[tuple[list[LedgerEntry], Rows | None], ...]:
        """Return the learned prompts and the other probes, each group with its rows."""
        return (
            (self.encoded_request.learned_entries(), self.learned),
            (self.encoded_request.other_entries(self.expected), self.others),
        )


def probed(answers: AnswerJudge, new: Sequence[EncodedRequest]) -> dict[str, Probed]:
    """Read the other probes of new requests, by the request's id. If the model's answer to a
    locality prompt differs from the request's, the probe expects the model's own answer, for as
    many tokens."""
    locality_targets = [tuple(encoding.targets for encoding in c.locality) for c in new]
    groups = [c.other_entries(s) for c, s in zip(new, locality_targets, strict=True)]
    if is_later := len(new) >= MANY:
        groups = [[entry for entry in group if entry.role == LOCALITY] for group in groups]
    entries = [entry for group in groups for entry in group]
    if not entries:
        return {c.id: Probed(s, None) for c, s in zip(new, locality_targets, strict=True)}
    encodings = [entry.encoding for entry in entries]
    rows = answers.site.rows_in_passes(encodings)
    places = [place for place, entry in enumerate(entries) if entry.role == LOCALITY]
    answers_by_place = {place: encodings[place].targets for place in places}
    moved_rows: dict[int, Rows] = {}
    outcomes = answers.are_right(encodings, rows, places)
    for place in (place for place, is_right in zip(places, outcomes, strict=True) if not is_right):
        answers_by_place[place] = answers.greedily(encodings[place])
        if answers_by_place[place] != encodings[place].targets:
            moved_rows[place] = answers.site.rows(
                [encodings[place].answered(answers_by_place[place])]
            )
    remaining_answers = iter(answers_by_place.values())
    parts = _replaced(rows, encodings, moved_rows).split([_row_count(group) for group in groups])
    return {
        c.id: Probed(tuple(islice(remaining_answers, len(s))), None if is_later else part)
        for c, s, part in zip(new, locality_targets, parts, strict=True)
    }


def read(site: Site, new: Sequence[NewProbes]) -> list[NewProbes]:
    """Return the probes with their missing rows read by the matrices as they are now."""
    groups = [group for probes in new for group in probes.groups()]
    unread_groups = [entries for entries, rows in groups if rows is None]
    if not any(unread_groups):
        return list(new)
    read_rows = site.rows_in_passes(
        [entry.encoding for entries in unread_groups for entry in entries]
    )
    parts = iter(read_rows.split([_row_count(entries) for entries in unread_groups]))
    rows = iter([next(parts) if rows is None else rows for _, rows in groups])
    return [replace(probes, learned=next(rows), others=next(rows)) for probes in new]


def _row_count(entries: Sequence[LedgerEntry]) -> int:
    return sum(len(entry.encoding.targets) for entry in entries)


def _replaced(rows: Rows, encodings: Sequence[Encoding], moved: Mapping[int, Rows]) -> Rows:
    """Return the rows of some probes, with the rows in `moved` at their places instead."""
    if not moved:
        return rows
    parts = rows.split([len(encoding.targets) for encoding in encodings])
    return Rows.join(moved.get(place, part) for place, part in enumerate(parts))
