"""Makes the rows of edits: keys and gates, a value by the search, and the other try if that fails.

Knows the order of these for a batch; leaves texts to `texts`, gates to `gates`, and the search to
`locate_then_edit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from continual.editors.lookup.config import LookupConfig
from continual.editors.lookup.gates import GatedKeys, WantedKeys, gated_keys
from continual.editors.lookup.silence import SilentTokens
from continual.editors.lookup.texts import ANSWER, END, SUBJECT, KeyedEdit, KeyedTexts
from continual.editors.scaffold import scaffold
from continual.effects.lookup import Lookup
from continual.locate_then_edit.subjects import SubjectMissing
from continual.locate_then_edit.targets import TargetValues, find_targets
from continual.patches.lookup import LookupPatch
from continual.proposals import Edit, EditContext
from continual.queries.memory import ProtectedQueries
from continual.site.tokens import token_queries

TOKENS = {SUBJECT: "at its subject", END: "at its prompt's end", ANSWER: "at its answer's tokens"}
CHOSEN_FOR = {
    SUBJECT: "its subject is in its prompt",
    END: "its key is at the prompt's end",
    ANSWER: "its keys are at the answer's tokens",
}


@dataclass
class EditTries:
    """One edit on its way: the tries that are left, and the result of those that are over."""

    edit: Edit
    silent: Tensor  # [r, d_k] the directions of tokens on which this edit alone stays silent
    left: list[KeyedEdit] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    parts: list[LookupPatch] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    is_made: bool = False


@dataclass
class _Try:
    """One try of an edit, under way."""

    edit: EditTries
    keyed: KeyedEdit
    parts: list[LookupPatch] = field(default_factory=list)
    keys: list[GatedKeys] = field(default_factory=list)
    steps: int = 0
    loss: float = 0.0
    reason: str | None = None  # why it failed

    def texts(self, number: int) -> KeyedTexts | None:
        """Return the texts of value `number`; None if there is none, or the try has failed."""
        has_value = self.reason is None and number < len(self.keyed.parts)
        return self.keyed.parts[number] if has_value else None

    def notes(self) -> dict[str, Any]:
        """Return the notes on the edit that `cedit show` prints."""
        opened, wanted = (sum(getattr(k, name) for k in self.keys) for name in ("opened", "wanted"))
        return {
            "chosen_for": CHOSEN_FOR[self.keyed.where],
            "steps": self.steps,
            "loss": round(self.loss, 4),
            "rows": sum(part.rows for part in self.parts),
            "gate": round(min((float(k.gates.min()) for k in self.keys), default=1.0), 4),
            "silent": round(max([-1.0, *(k.silent for k in self.keys)]), 4),  # no cosine is lower
            "opens": f"{opened} of {wanted}",
        }


@dataclass(frozen=True)
class RowMaker:
    """Makes the rows of a batch at one place, on the model as it stands."""

    context: EditContext
    config: LookupConfig
    silent: SilentTokens
    memory: ProtectedQueries  # of all directions on which every edit stays silent

    @property
    def _lookup(self) -> Lookup:
        return LookupPatch.of_model(self.context.site.edited, self.silent.place)

    def begun(
        self, edits: Sequence[Edit], choose: Callable[[Edit], Sequence[KeyedEdit]]
    ) -> list[EditTries]:
        """Return the tries of each edit: first the one whose gates take in more of its wordings. A
        retry begins with the other one."""
        tokens = {edit.id: self.silent.queries(edit.encodings[: edit.forms]) for edit in edits}
        tries = []
        for edit in edits:
            others = [part for other in edits if other is not edit for part in tokens[other.id]]
            tries.append(EditTries(edit, torch.cat([self.silent.around(edit), *others])))
            self._rank(tries[-1], choose(edit))
        return tries

    def _rank(self, tries: EditTries, choices: Sequence[KeyedEdit]) -> None:
        if not choices:
            request = tries.edit.request
            tries.reasons.append(str(SubjectMissing(str(request.prompt), request.subject)))
        shares: list[tuple[float, KeyedEdit]] = []
        for keyed in choices:
            keys = self._gated(tries, keyed.parts[0])
            if isinstance(keys, GatedKeys):
                shares.append((keys.share, keyed))
            else:
                tries.reasons.append(_untold(keyed.where, keys))
        ranked = [keyed for _, keyed in sorted(shares, key=lambda pair: -pair[0])]
        turn = self.context.attempt % max(1, len(ranked))
        tries.left = ranked[turn:] + ranked[:turn]

    def make(self, pending: Sequence[EditTries]) -> None:
        """Make the next try of each edit, all of them together, value after value."""
        tries = [_Try(edit, edit.left.pop(0)) for edit in pending]
        edited = self.context.site.edited
        with scaffold(edited):
            for number in range(max(len(one.keyed.parts) for one in tries)):
                made = self._values(number, tries)
                if made:
                    edited.put(LookupPatch.joined(made))
        for one in tries:
            self._close(one)

    def _values(self, number: int, tries: Sequence[_Try]) -> list[LookupPatch]:
        """Search for value `number` of each try that has one, and return the new rows."""
        batch = [(one, texts) for one in tries if (texts := one.texts(number)) is not None]
        if not batch:
            return []
        learned = [texts.learned for _, texts in batch]
        targets = find_targets(self.context.site, learned, self.silent.place.block, self.config)
        made: list[LookupPatch] = []
        for place, (one, texts) in enumerate(batch):
            made += self._row(one, texts, targets[[place]])
        return made

    def _row(self, one: _Try, texts: KeyedTexts, target: TargetValues) -> list[LookupPatch]:
        """Take in the value of a try: make its rows, or note why there are none."""
        (steps,), (loss,), (has_arrived,) = target.steps, target.losses, target.arrived
        one.steps, one.loss = one.steps + steps, max(one.loss, loss)
        if not has_arrived or not bool(target.states.isfinite().all()):
            one.reason = (
                f"no value that gives its target was found {TOKENS[one.keyed.where]} in {steps} "
                f"steps (loss {loss:.2g})"
            )
            return []
        if one.keyed.where == ANSWER and not steps:  # the token is said without a record
            return []
        keys = self._gated(one.edit, texts)
        if not isinstance(keys, GatedKeys):
            one.reason = _untold(one.keyed.where, keys)
            return []
        one.keys.append(keys)
        one.parts.append(self._patch(one.edit.edit, keys, target.states - target.before))
        return one.parts[-1:]

    def _patch(self, edit: Edit, keys: GatedKeys, delta: Tensor) -> LookupPatch:
        """Return rows that come to δ [1, d] on top of the records that their keys open now."""
        values = [delta[0] + self._lookup.added_at(key) for key in keys.keys]
        return LookupPatch(
            self.silent.place,
            keys.keys.cpu(),
            torch.stack(values).float().cpu(),
            keys.gates.cpu(),
            (edit.id,) * len(values),
        )

    @staticmethod
    def _close(one: _Try) -> None:
        """Hand the result of a try to its edit."""
        edit = one.edit
        if one.reason is None:
            edit.is_made, edit.parts, edit.notes = True, one.parts, one.notes()
            return
        edit.reasons.append(one.reason)
        by_token = one.keyed.by_token()
        if by_token is not None:
            edit.left.append(by_token)

    # -- keys

    def _gated(self, tries: EditTries, texts: KeyedTexts) -> GatedKeys | float:
        """Return the gated keys of some texts; see `gated_keys`."""
        with self.memory.beside(tries.silent):
            return gated_keys(
                self._wanted(texts), self.memory.highest_scores, self.config, self.context.narrow
            )

    def _wanted(self, texts: KeyedTexts) -> WantedKeys:
        """Read the keys of the wanted texts, in passes over them alone."""
        place, wanted = self.silent.place, texts.wanted
        encodings = [text.until_place() for text in wanted]
        queries = token_queries(self.context.site, encodings, [place])[place]
        keys = torch.stack([rows[-1] for rows in queries]).clone()
        return WantedKeys(keys, len(texts.own), self._lookup.highest(keys))


def _untold(where: str, cosine: float) -> str:
    return (
        f"the key {TOKENS[where]} is not told from that of a token on which it has to stay silent "
        f"(their cosine is {cosine:.4f})"
    )
