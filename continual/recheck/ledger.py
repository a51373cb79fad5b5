"""The ledger: the outcome of every probe, kept exact while patches come and go.

A probe is kept as rows at the last FFN. A new neuron there touches only rows with q·k + b > 0: a
search finds them, and only their logits are computed again. A gate at any other place touches the
probes with a token that opens it; only these are run again. If parameters are edited, every probe
is measured again. If a row's two best logits are closer than float rounding, a forward pass over
its probe alone decides; a full re-check decides such probes in the same way, so that both give the
same outcomes, probe by probe.

If the model remembers edits, a record answers the probes that are about it: the ledger then follows
both the model's own outcomes and those of `RoutedProbes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from continual.effects.places import GatePlace
from continual.memory.answers import AnswerJudge
from continual.memory.probes import RoutedProbes
from continual.memory.routing import Route
from continual.model import Since
from continual.recheck.entries import (
    CONTINUATION,
    EDIT,
    HELD_OUT,
    LOCALITY,
    NEIGHBOUR,
    PORTABILITY,
    REPHRASE,
    ROLES,
    TEST,
    TRAIN,
    WATCH,
    WATCHED,
    EntryTable,
    LedgerEntry,
    RowTable,
)
from continual.recheck.kept_tokens import KeptTokens
from continual.recheck.metrics import Count
from continual.recheck.probe_passes import ProbePasses
from continual.site import Site
from continual.site.rows import Rows

__all__ = [
    "CONTINUATION",
    "EDIT",
    "HELD_OUT",
    "LOCALITY",
    "NEIGHBOUR",
    "PORTABILITY",
    "REPHRASE",
    "ROLES",
    "TEST",
    "TRAIN",
    "WATCH",
    "WATCHED",
    "Ledger",
    "LedgerEntry",
]

NONE = torch.empty(0, dtype=torch.long)


class Ledger:
    """The probes of the base and of the active requests, and their outcomes as the model stands."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._entries = EntryTable()
        width = torch.empty(0, site.edited.anatomy.width, device=site.edited.site_device)
        self._rows = RowTable(width)
        self._state = site.edited.fingerprint  # of the model that the outcomes are for
        self._passes: ProbePasses | None = None
        self._tokens: KeptTokens | None = None  # of all entries, once there are gates elsewhere
        self._routed: RoutedProbes | None = None  # of all entries, once the model remembers edits
        self._places: dict[tuple[str, str], list[int]] = {}
        self._in_forms: set[str] = set()  # owners whose prompt has several forms

    # -- reading

    @property
    def entries(self) -> Sequence[LedgerEntry]:
        """All entries, active or not, in the order in which they came."""
        return self._entries.all

    @property
    def rows(self) -> Rows:
        """The rows of all entries, one after another."""
        return self._rows.all

    def _rows_at(self, index: Tensor) -> Rows:
        """Return the rows at these places, with their texts."""
        texts = self._entries.texts(self._rows.entry[index], index, self._site.edited.decode)
        return self._rows.at(index, texts)

    def is_right(self, entry: LedgerEntry) -> bool:
        """Tell whether a registered probe is right now."""
        place = self.places(entry.owner, entry.role)[entry.index]
        return bool(self._outcomes[place])

    def entry(self, key: str) -> LedgerEntry | None:
        """Return the registered probe with this key; None if its owner is retired."""
        owner, role, index = key.rsplit(":", 2)
        places = self.places(owner, role)
        return self.entries[places[int(index)]] if int(index) < len(places) else None

    def route(self, entry: LedgerEntry) -> Route | None:
        """Return the record that answers a registered probe; None if the model itself does."""
        place = self.places(entry.owner, entry.role)[entry.index]
        return None if self._routed is None else self._routed.route(place)

    def outcomes(self) -> dict[str, bool]:
        """Return the outcomes of all active entries, by key."""
        places = self._entries.is_active.rows.nonzero().squeeze(-1).tolist()
        values = self._outcomes[places].tolist()
        return {self.entries[i].key: value for i, value in zip(places, values, strict=True)}

    def places(self, owner: str, role: str) -> Sequence[int]:
        """Return the places of an owner's entries of a role."""
        return self._places.get((owner, role), ())

    def count(self, role: str, owners: Iterable[str] | None = None) -> Count:
        """Count the active entries of a role that are right: of all owners, or of these alone. An
        edit counts once, and is right if its prompt is right in each of its forms."""
        if owners is not None:
            owners = list(owners)
            places = [place for owner in owners for place in self.places(owner, role)]
            count = Count(int(self._outcomes[places].sum()), len(places)) if places else Count()
        else:
            is_counted = self._entries.active([role])
            count = Count(int((is_counted & self._outcomes).sum()), int(is_counted.sum()))
        return self._once(count, owners) if role == EDIT and self._in_forms else count

    def _once(self, edits: Count, owners: Iterable[str] | None) -> Count:
        """Return a count of edits' entries in which an edit with several entries counts once."""
        for owner in self._in_forms if owners is None else self._in_forms & {*owners}:
            outcomes = self._outcomes[list(self.places(owner, EDIT))]
            right_count, total = int(outcomes.sum()), len(outcomes)
            edit_count = Count(int(right_count == total), 1)
            edits = Count(
                edits.right - right_count + edit_count.right, edits.total - total + edit_count.total
            )
        return edits

    def rows_of(self, owner: str, role: str) -> Rows:
        """Return the rows of an owner's entries of a role."""
        is_match = torch.isin(self._rows.entry, torch.tensor(self.places(owner, role)))
        return self._rows_at(is_match.nonzero().squeeze(-1))

    @property
    def _outcomes(self) -> Tensor:
        """[entries] bool: the outcomes by whoever answers, the model or a record."""
        outcomes = self._entries.is_right.rows
        return outcomes if self._routed is None else self._routed.effective(outcomes)

    # -- following changes

    def register(self, entries: Sequence[LedgerEntry], rows: Rows | None = None) -> None:
        """Take in probes, and measure them with the model as it stands; `rows` are theirs if known
        already."""
        if not entries:
            return
        if rows is None:
            rows = self._site.rows_in_passes([entry.encoding for entry in entries])
        first_place, first_row = len(self._entries), len(self._rows)
        self._rows.append(rows, self._entries.append(entries, first_row))
        for place, entry in enumerate(entries, start=first_place):
            self._places.setdefault((entry.owner, entry.role), []).append(place)
            if entry.role == EDIT and entry.index:
                self._in_forms.add(entry.owner)
        self._measure(torch.arange(first_row, len(self._rows)))
        self._route_new()
        if self._tokens is None:
            self._keep_tokens()
        else:
            self._tokens.add(entry.encoding for entry in entries)

    def _route_new(self) -> None:
        """Route the probes that have no route yet, if the model has records, or had."""
        if self._routed is None:
            if not self._site.edited.memory.size:
                return
            self._routed = RoutedProbes(AnswerJudge(self._site))
        self._routed.add([entry.encoding for entry in self.entries[len(self._routed) :]])

    def would_break(self, roles: Sequence[str]) -> list[LedgerEntry]:
        """Return the active entries of these roles that are right in the ledger, and wrong with the
        patches that are on the model but not followed yet. Changes no outcome in the ledger."""
        places = (self._entries.active(roles) & self._outcomes).nonzero().squeeze(-1)
        if not len(places):
            return []
        outcomes = self._own_preview(places)
        if self._site.edited.memory.size:
            outcomes = self._routed_preview(places, outcomes)
        return [self.entries[place] for place in places[~outcomes].tolist()]

    def _own_preview(self, places: Tensor) -> Tensor:
        """Return the model's own outcomes at these places, [n] bool, as it stands now."""
        since = self._since()
        if since is None or self._is_mixed(since):
            return self._judged_in_full(places)
        touched_places = self._touched(since)
        outcomes = self._entries.is_right.rows.clone()
        rows = self._fired(since)
        rows = rows[torch.isin(self._rows.entry[rows], places)]
        if len(rows):
            verdict = self._rows.judged(rows, self._site.judge(self._rows_at(rows)))
            probes = self._rows.entry[rows].unique()
            outcomes[probes] = self._entries.hold_for_all(verdict.right, probes)
            for place in self._close_among(probes, verdict.close).tolist():
                outcomes[place] = self._site.judge_alone(self.entries[place].encoding)
        repeat_places = places[torch.isin(places, touched_places)]
        outcomes[repeat_places] = self._judged_in_full(repeat_places)
        return outcomes[places]

    def _routed_preview(self, places: Tensor, own: Tensor) -> Tensor:
        """Return the outcomes at these places, [n] bool, by whoever answers now."""
        answers = AnswerJudge(self._site)
        encodings = [self.entries[place].encoding for place in places.tolist()]
        return torch.tensor(answers.with_own(encodings, own.tolist()), dtype=torch.bool)

    def retire(self, owner: str) -> list[str]:
        """Count the entries of a superseded owner no longer; return their keys."""
        self._in_forms.discard(owner)
        places = [place for role in ROLES for place in self._places.pop((owner, role), ())]
        if places:
            self._entries.is_active[torch.tensor(places)] = False
        return [self.entries[place].key for place in places]

    def drop(self, places: Sequence[int]) -> None:
        """Count these entries no longer; other entries of their owners stay."""
        if places:
            self._entries.is_active[torch.tensor(places)] = False

    def advance(self) -> dict[str, bool]:
        """Follow the patches put on since the last time; return the outcomes that turned, by key.

        Neurons touch the rows on which they fire; edited matrices move every row. Records touch the
        probes that they win.
        """
        outcomes = self._outcomes.clone()
        self._follow()
        if self._routed is not None:
            self._routed.advance()
        self._route_new()
        return self._turned(outcomes)

    def _follow(self) -> None:
        """Bring the model's own outcomes up to date."""
        since = self._since()
        if since is None:
            self._read_anew()
        else:
            touched_places, firing_rows = self._touched(since), self._fired(since)
            self._run_again(touched_places)
            rows = firing_rows[~torch.isin(self._rows.entry[firing_rows], touched_places)]
            self._measure(torch.cat([rows, self._entries.rows_of(touched_places)]).sort().values)
        self._state = self._site.edited.fingerprint

    def _since(self) -> Since | None:
        """Return the effects that came since the outcomes were measured; None if parameters
        changed, or the model did not pass through that state: every probe is then measured
        again."""
        since = self._site.edited.since(self._state)
        return None if since is None or since.reach.blocks else since

    def _fired(self, since: Since) -> Tensor:
        """Return the rows [r] on which new neurons of the last FFN fire; none if outcomes cannot be
        read off rows."""
        if not self._site.edited.is_read_off_rows:
            return NONE
        bank = self._site.bank
        start = since.first(bank)
        return self._rows.query.above(bank.keys[start:], -bank.bias[start:]).cpu()

    def _touched(self, since: Since) -> Tensor:
        """Return the entries [p], ascending, with a token that may open a new gate elsewhere."""
        self._keep_tokens()
        if self._tokens is None:
            return NONE
        places = self._watched_places()
        effects = [effect for effect in since.gated if effect.place in places]
        parts = [self._tokens.touched(effect, since.first(effect)) for effect in effects]
        entries: Tensor = torch.cat([NONE, *parts]).unique()
        return entries

    def _watched_places(self) -> list[GatePlace]:
        """Return the places whose gates are followed token by token: all but the last FFN's own,
        and that one, too, if gates read behind it."""
        edited = self._site.edited
        own_place = self._site.place
        places = dict.fromkeys(effect.place for effect in edited.open_gates)
        return [place for place in places if place != own_place or not edited.is_read_off_rows]

    def _is_mixed(self, since: Since) -> bool:
        """Tell whether tokens read now at a new place would include the effect of new gates at
        other places. These gates may be taken off again, so such tokens must not be kept."""
        places = () if self._tokens is None else self._tokens.places
        return len(since.gated) > 1 and any(p not in places for p in self._watched_places())

    def _keep_tokens(self) -> None:
        """Keep the tokens of all entries at the places watched now."""
        places = self._watched_places()
        if self._tokens is None:
            if not places:
                return
            self._tokens = KeptTokens(self._site)
        self._tokens.watch(places)
        self._tokens.add(entry.encoding for entry in self.entries[len(self._tokens) :])

    def _run_again(self, places: Tensor) -> None:
        """Read the rows and the tokens of these entries [p] again, by the model as it stands."""
        if not len(places):
            return
        if self._site.edited.moves_rows:
            rows = self._site.rows_in_passes(self._entries.encodings(places))
            self._rows.put(self._entries.rows_of(places), rows)
        if self._tokens is not None:
            self._tokens.renew(places)

    def _read_anew(self) -> None:
        """Read all rows and tokens again, and judge every probe."""
        if not self.entries:
            return
        self._rows.replace(self._read_rows())
        if self._tokens is not None:
            self._tokens.forget()
            self._keep_tokens()
        self._measure(torch.arange(len(self._rows)))

    def _read_rows(self) -> Rows:
        """Read all rows, from the lowest edited block upward; in whole passes if no block is below
        it, or gates see whole texts."""
        edited = self._site.edited
        block = edited.reach.lowest(self._site.place) or 0
        encodings = [entry.encoding for entry in self.entries]
        if block == 0 or edited.moves_rows:
            self._passes = None
            self._site.recordings_at(0)  # forgets all others
            return self._site.rows_in_passes(encodings)
        if self._passes is None or self._passes.block != block:
            self._passes = ProbePasses(self._site, block)
        self._passes.add(encodings[len(self._passes) :])
        return self._passes.rows()

    def remeasure(self) -> dict[str, bool]:
        """Route and judge every probe anew, by full forward passes; return the outcomes that
        turned."""
        outcomes = self._outcomes.clone()
        places = torch.arange(len(self._entries))
        self._entries.is_right[places] = self._judged_in_full(places)
        self._route_new()
        if self._routed is not None:
            self._routed.remeasure()
        return self._turned(outcomes)

    def _measure(self, rows: Tensor) -> None:
        """Judge these rows [r] anew, and their probes."""
        if len(rows) == 0:
            return
        probes = self._rows.entry[rows].unique()
        if not self._site.edited.is_read_off_rows:
            self._entries.is_right[probes] = self._judged_in_full(probes)
            return
        self._rows.judge(rows, self._site.judge(self._rows_at(rows)))
        verdict = self._rows.verdict
        self._entries.is_right[probes] = self._entries.hold_for_all(verdict.right, probes)
        for place in self._close_among(probes, verdict.close).tolist():
            outcome = self._site.judge_alone(self.entries[place].encoding)
            self._entries.is_right[slice(place, place + 1)] = outcome

    def _close_among(self, probes: Tensor, close: Tensor) -> Tensor:
        """Return those of the probes [p] that have a close row, by `close` [rows]."""
        return probes[~self._entries.hold_for_all(~close, probes)]

    def _judged_in_full(self, places: Tensor) -> Tensor:
        """Return the outcomes of entries, [p] bool, by whole passes."""
        outcomes = self._site.judge_in_full(self._entries.encodings(places))
        return torch.tensor(outcomes, dtype=torch.bool)

    def _turned(self, before: Tensor) -> dict[str, bool]:
        outcomes = self._outcomes
        places = (
            ((before != outcomes) & self._entries.is_active.rows).nonzero().squeeze(-1).tolist()
        )
        return {self.entries[place].key: bool(outcomes[place]) for place in places}
