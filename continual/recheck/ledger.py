"""The ledger: the outcome of every probe, kept exact while patches come and go.

A probe is kept as rows at the last FFN. A new neuron touches only rows with q·k + b > 0: a search
finds them, and only their logits are computed again. Where a row's two best logits are
closer than float rounding, its probe is decided by a forward pass over it alone; a full re-check
decides such probes in the same way, so that both give the same outcomes, probe by probe.

Where the model remembers edits, a probe that a record is about is answered by the record: the
ledger then follows both, what the model itself gets right and what `RoutedProbes` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.memory.answers import Answers
from continual.memory.probes import RoutedProbes
from continual.memory.routing import Route
from continual.queries.growing import GrowingTensor
from continual.queries.search import SearchedQueries
from continual.reading import RowTexts
from continual.recheck.metrics import Count
from continual.recheck.probe_passes import ProbePasses
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding

EDIT, REPHRASE, HELD_OUT = "edit", "rephrase", "held_out"
LOCALITY, PORTABILITY, TRAIN, TEST = "locality", "portability", "train", "test"
WATCH, NEIGHBOUR, CONTINUATION = "watch", "neighbour", "continuation"
WATCHED = (WATCH, NEIGHBOUR, CONTINUATION)
ROLES = (EDIT, REPHRASE, HELD_OUT, LOCALITY, PORTABILITY, TRAIN, TEST, *WATCHED)


@dataclass(frozen=True)
class Entry:
    """A probe in the ledger."""

    owner: str  # the request's id, or the probe set's name
    role: str
    index: int  # among the owner's probes of that role
    encoding: Encoding

    @property
    def key(self) -> str:
        """Its name in the journal."""
        return f"{self.owner}:{self.role}:{self.index}"


class Ledger:
    """The probes of the base and of the active requests, and their outcomes as the model stands."""

    def __init__(self, site: Site) -> None:
        """What is large lies on the model's device, what is counted on the CPU."""
        self._site = site
        self.entries: list[Entry] = []
        width = torch.empty(0, site.edited.anatomy.width, device=site.edited.device)
        self._query, self._hidden = SearchedQueries(width), GrowingTensor(width)
        self._target = GrowingTensor(width.new_empty(0, dtype=torch.long))
        self._followed = site.bank.size  # neurons, from the first, that the outcomes reflect
        self._state = site.edited.rows_state  # of the model, for which the rows hold
        self._passes: ProbePasses | None = None
        flags, numbers = torch.empty(0, dtype=torch.bool), torch.empty(0, dtype=torch.long)
        self._probe = GrowingTensor(numbers)  # the entry that a row belongs to
        self._right = GrowingTensor(flags)  # of rows
        self._close = GrowingTensor(flags)  # of rows
        self._first_rows = GrowingTensor(numbers)  # of entries
        self._sizes = GrowingTensor(numbers)  # of entries: how many rows they have
        self._role = GrowingTensor(numbers)  # of entries: an index into ROLES
        self._active = GrowingTensor(flags)  # of entries
        self._own = GrowingTensor(flags)  # of entries: the model's own outcomes
        self._routed: RoutedProbes | None = None  # of all entries, once the model remembers edits
        self._places: dict[tuple[str, str], list[int]] = {}
        self._in_forms: set[str] = set()  # owners whose prompt is asked in several forms

    # -- what is known

    @property
    def rows(self) -> Rows:
        """The rows of all entries, one after another."""
        return Rows(self._query.rows, self._hidden.rows, self._target.rows)

    def _rows_at(self, index: Tensor) -> Rows:
        """The rows at these places, with their texts."""
        probes = self._probe.rows[index].tolist()
        offsets = (index - self._first_rows.rows[self._probe.rows[index]]).tolist()
        read = [
            (encoding.ids, encoding.positions[offset] + 1)
            for probe, offset in zip(probes, offsets, strict=True)
            for encoding in (self.entries[probe].encoding,)
        ]
        texts = RowTexts(self._site.edited.decode, read)
        return Rows(
            self._query.rows[index], self._hidden.rows[index], self._target.rows[index], texts
        )

    def is_right(self, entry: Entry) -> bool:
        """Whether a registered probe is right now."""
        place = self.places(entry.owner, entry.role)[entry.index]
        return bool(self._outcomes[place])

    def entry(self, key: str) -> Entry | None:
        """The registered probe of this name; None where its owner is retired."""
        owner, role, index = key.rsplit(":", 2)
        places = self.places(owner, role)
        return self.entries[places[int(index)]] if int(index) < len(places) else None

    def route(self, entry: Entry) -> Route | None:
        """The record that answers a registered probe; None where the model itself does."""
        place = self.places(entry.owner, entry.role)[entry.index]
        return None if self._routed is None else self._routed.route(place)

    def outcomes(self) -> dict[str, bool]:
        """All outcomes by key, of active entries."""
        places = self._active.rows.nonzero().squeeze(-1).tolist()
        values = self._outcomes[places].tolist()
        return {self.entries[i].key: value for i, value in zip(places, values, strict=True)}

    def places(self, owner: str, role: str) -> Sequence[int]:
        """Where an owner's entries of a role stand."""
        return self._places.get((owner, role), ())

    def count(self, role: str, owners: Iterable[str] | None = None) -> Count:
        """How many active entries of a role are right: all of them, or only these owners'. An edit
        counts once, and is right where its prompt is in each of its forms."""
        if owners is not None:
            owners = list(owners)
            places = [place for owner in owners for place in self.places(owner, role)]
            found = Count(int(self._outcomes[places].sum()), len(places)) if places else Count()
        else:
            counted = self._active.rows & (self._role.rows == ROLES.index(role))
            found = Count(int((counted & self._outcomes).sum()), int(counted.sum()))
        return self._once(found, owners) if role == EDIT and self._in_forms else found

    def _once(self, edits: Count, owners: Iterable[str] | None) -> Count:
        """A count of edits' entries, with one for each edit that has several."""
        for owner in self._in_forms if owners is None else self._in_forms & {*owners}:
            outcomes = self._outcomes[list(self.places(owner, EDIT))]
            right, total = int(outcomes.sum()), len(outcomes)
            whole = Count(int(right == total), 1)
            edits = Count(edits.right - right + whole.right, edits.total - total + whole.total)
        return edits

    def rows_of(self, owner: str, role: str) -> Rows:
        """The rows of an owner's entries of a role."""
        wanted = torch.isin(self._probe.rows, torch.tensor(self.places(owner, role)))
        return self._rows_at(wanted.nonzero().squeeze(-1))

    @property
    def _outcomes(self) -> Tensor:
        """[entries] bool"""
        own = self._own.rows
        return own if self._routed is None else self._routed.effective(own)

    # -- what changes

    def register(self, entries: Sequence[Entry], rows: Rows | None = None) -> None:
        """Take in probes, measured as the model stands; `rows` where they are known already."""
        if not entries:
            return
        if rows is None:
            rows = self._site.rows_in_passes([entry.encoding for entry in entries])
        first_place, first_row = len(self.entries), len(self._probe)
        sizes = torch.tensor([len(entry.encoding.targets) for entry in entries])
        places = torch.arange(first_place, first_place + len(entries))
        self._query.append(rows.query)
        self._hidden.append(rows.hidden)
        self._target.append(rows.targets)
        self._probe.append(places.repeat_interleave(sizes))
        self._right.append(torch.zeros(len(rows), dtype=torch.bool))
        self._close.append(torch.zeros(len(rows), dtype=torch.bool))
        self._first_rows.append(first_row + sizes.cumsum(0) - sizes)
        self._sizes.append(sizes)
        self._own.append(torch.zeros(len(entries), dtype=torch.bool))
        self._role.append(torch.tensor([ROLES.index(entry.role) for entry in entries]))
        self._active.append(torch.ones(len(entries), dtype=torch.bool))
        for place, entry in enumerate(entries, start=first_place):
            self.entries.append(entry)
            self._places.setdefault((entry.owner, entry.role), []).append(place)
            if entry.role == EDIT and entry.index:
                self._in_forms.add(entry.owner)
        self._measure(torch.arange(first_row, len(self._probe)))
        self._route_new()

    def _route_new(self) -> None:
        """Route the probes that have no route yet, if the model remembers anything, or did."""
        if self._routed is None:
            if not self._site.edited.memory.size:
                return
            self._routed = RoutedProbes(Answers(self._site))
        self._routed.add([entry.encoding for entry in self.entries[len(self._routed) :]])

    def would_break(self, roles: Sequence[str]) -> list[Entry]:
        """Active entries of these roles that are right in the ledger, and wrong with the patches
        that are on the model but not followed yet. The ledger itself stays as it is."""
        numbers = torch.tensor([ROLES.index(role) for role in roles])
        wanted = self._active.rows & torch.isin(self._role.rows, numbers) & self._outcomes
        places = wanted.nonzero().squeeze(-1)
        if not len(places):
            return []
        own = self._own_preview(places)
        if self._site.edited.memory.size:
            own = self._routed_preview(places, own)
        return [self.entries[place] for place in places[~own].tolist()]

    def _own_preview(self, places: Tensor) -> Tensor:
        """[n] bool: the model's own outcomes at these places, as it stands now."""
        if self._state != self._site.edited.rows_state:
            encodings = [self.entries[place].encoding for place in places.tolist()]
            return torch.tensor(self._site.judge_in_full(encodings), dtype=torch.bool)
        own = self._own.rows.clone()
        bank = self._site.bank
        fired = self._query.above(bank.keys[self._followed :], -bank.bias[self._followed :]).cpu()
        is_asked = torch.zeros_like(own)
        is_asked[places] = True
        rows = fired[is_asked[self._probe.rows[fired]]]
        if len(rows):
            verdict = self._site.judge(self._rows_at(rows))
            right, close = self._right.rows.clone(), self._close.rows.clone()
            right[rows], close[rows] = verdict.right.cpu(), verdict.close.cpu()
            probes = self._probe.rows[rows].unique()
            own[probes] = self._all_of_probe(right, probes)
            for place in probes[~self._all_of_probe(~close, probes)].tolist():
                own[place] = self._site.judge_alone(self.entries[place].encoding)
        return own[places]

    def _routed_preview(self, places: Tensor, own: Tensor) -> Tensor:
        """[n] bool: the outcomes at these places by whoever answers now."""
        answers = Answers(self._site)
        encodings = [self.entries[place].encoding for place in places.tolist()]
        return torch.tensor(answers.with_own(encodings, own.tolist()), dtype=torch.bool)

    def retire(self, owner: str) -> list[str]:
        """Count an owner's entries no longer: another request has superseded it. Their keys."""
        self._in_forms.discard(owner)
        places = [place for role in ROLES for place in self._places.pop((owner, role), ())]
        if places:
            self._active[torch.tensor(places)] = False
        return [self.entries[place].key for place in places]

    def drop(self, places: Sequence[int]) -> None:
        """Count these entries no longer; their owner's others stay."""
        if places:
            self._active[torch.tensor(places)] = False

    def advance(self) -> dict[str, bool]:
        """Follow what was put on since the last time: the outcomes that turned.

        Neurons touch the rows on which they fire; where matrices were edited, every row moves.
        Records touch the probes that they win.
        """
        before = self._outcomes.clone()
        self._follow()
        if self._routed is not None:
            self._routed.advance()
        self._route_new()
        return self._turned(before)

    def _follow(self) -> None:
        """The model's own outcomes, as it is now."""
        bank = self._site.bank
        if self._state != self._site.edited.rows_state:
            self._recapture()
            self._measure(torch.arange(len(self._probe)))
            self._followed = bank.size
            return
        fired = self._query.above(bank.keys[self._followed :], -bank.bias[self._followed :])
        self._measure(fired.cpu())
        self._followed = bank.size

    def _recapture(self) -> None:
        """All rows anew, from the lowest edited block upward."""
        edited = self._site.edited
        self._state = edited.rows_state
        if not self.entries:
            return
        lowest = edited.reach.lowest(self._site.block) or 0
        encodings = [entry.encoding for entry in self.entries]
        if lowest == 0:  # there is nothing below it to spare
            self._passes = None
            rows = self._site.rows_in_passes(encodings)
        else:
            if self._passes is None or self._passes.block != lowest:
                self._passes = ProbePasses(self._site, lowest)
            self._passes.add(encodings[len(self._passes) :])
            rows = self._passes.rows()
        self._query.replace(rows.query)
        self._hidden[slice(None)] = rows.hidden

    def remeasure(self) -> dict[str, bool]:
        """Every route and outcome anew, by full forward passes: those that turned."""
        before = self._outcomes.clone()
        found = self._site.judge_in_full([entry.encoding for entry in self.entries])
        self._own[slice(None)] = torch.tensor(found, dtype=torch.bool)
        self._route_new()
        if self._routed is not None:
            self._routed.remeasure()
        return self._turned(before)

    def _measure(self, rows: Tensor) -> None:
        """Judge these rows anew, and the probes that they belong to."""
        if len(rows) == 0:
            return
        verdict = self._site.judge(self._rows_at(rows))
        self._right[rows] = verdict.right.cpu()
        self._close[rows] = verdict.close.cpu()
        probes = self._probe.rows[rows].unique()
        self._own[probes] = self._all_of_probe(self._right.rows, probes)
        close = ~self._all_of_probe(~self._close.rows, probes)
        for place in probes[close].tolist():
            outcome = self._site.judge_alone(self.entries[place].encoding)
            self._own[slice(place, place + 1)] = outcome

    def _all_of_probe(self, of_row: Tensor, probes: Tensor) -> Tensor:
        """Whether a row's property holds for all rows of each of these probes; only these rows are
        looked at."""
        sizes = self._sizes.rows[probes]
        ends = sizes.cumsum(0)
        shift = self._first_rows.rows[probes] - (ends - sizes)  # from here to the rows' places
        index = torch.arange(int(sizes.sum())) + shift.repeat_interleave(sizes)
        wrong = torch.cat([torch.zeros(1, dtype=torch.long), (~of_row[index]).long().cumsum(0)])
        return wrong[ends] == wrong[ends - sizes]

    def _turned(self, before: Tensor) -> dict[str, bool]:
        now = self._outcomes
        places = ((before != now) & self._active.rows).nonzero().squeeze(-1).tolist()
        return {self.entries[place].key: bool(now[place]) for place in places}
