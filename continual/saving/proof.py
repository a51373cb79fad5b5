"""Every probe of the ledger asked again of a saved model, as another program loads it.

The outcomes that the history has are compared with those of the saved model, probe by probe, by the
verdicts of the ledger. Knows probes and outcomes; leaves the loading of the model to the forms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from continual.effects.gated import NeuronBank
from continual.errors import ModelError
from continual.listening import Listener
from continual.recheck.ledger import EDIT, ROLES, Ledger, LedgerEntry
from continual.saving.merged import UNSEEN, ActivationRange
from continual.site import Site
from continual.task_model import length_sorted
from continual.verdicts import tie_of

ASKED_TOGETHER = 512  # probes between two reports of progress
ROWS_TOGETHER = 1024  # queries scored at a time
ASKING = "asking the saved model every probe"


@dataclass(frozen=True)
class RoleProof:
    """The probes of one role: how many there are, are right in the history, and in the saved model,
    and how many turned."""

    probes: int = 0
    right_in_history: int = 0
    right_when_saved: int = 0
    turned: int = 0

    def to_json(self) -> dict[str, int]:
        """Return its counts by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class Proof:
    """The outcomes of all active probes, by the probe's key."""

    entries: Sequence[LedgerEntry]
    history: Mapping[str, bool]
    saved: Mapping[str, bool]

    @property
    def roles(self) -> dict[str, RoleProof]:
        """Return the counts of each role that has probes."""
        groups = {role: [e.key for e in self.entries if e.role == role] for role in ROLES}
        return {
            role: RoleProof(
                len(keys),
                sum(self.history[key] for key in keys),
                sum(self.saved[key] for key in keys),
                sum(self.history[key] != self.saved[key] for key in keys),
            )
            for role, keys in groups.items()
            if keys
        }

    def is_right(self, owner: str) -> bool:
        """Tell whether the saved model answers a correction rightly, in all of its forms."""
        return all(self.saved[key] for key in self._edits.get(owner, ()))

    @property
    def lost(self) -> list[str]:
        """Return the ids of the corrections that are right in the history alone."""
        return [
            owner
            for owner, keys in self._edits.items()
            if all(self.history[key] for key in keys) and not self.is_right(owner)
        ]

    @cached_property
    def _edits(self) -> Mapping[str, Sequence[str]]:
        """The keys of each correction's own prompts, by its id."""
        keys: dict[str, list[str]] = {}
        for entry in self.entries:
            if entry.role == EDIT:
                keys.setdefault(entry.owner, []).append(entry.key)
        return keys


def prove(site: Site, ledger: Ledger, model: Any, listener: Listener) -> Proof:
    """Ask a model every active probe of a ledger."""
    history = ledger.outcomes()
    entries = [entry for entry in ledger.entries if entry.key in history]
    encodings = [entry.encoding for entry in entries]
    places = [place for batch in length_sorted(encodings) for place in batch]
    tie = tie_of(next(model.parameters()).dtype)
    saved: dict[str, bool] = {}
    for start in range(0, len(places), ASKED_TOGETHER):
        part = places[start : start + ASKED_TOGETHER]
        outcomes = site.judge_in_full([encodings[place] for place in part], model, tie)
        saved |= {entries[place].key: o for place, o in zip(part, outcomes, strict=True)}
        listener.progress(ASKING, len(saved), len(entries))
    return Proof(entries, history, saved)


def require_same_tokens(site: Site, ledger: Ledger, tokenizer: Any) -> None:
    """Raise ModelError if a tokenizer reads the text of a correction or its chat template otherwise
    than the base's."""
    own = site.edited.tokenizer
    if own.chat_template != tokenizer.chat_template:
        raise ModelError("The saved model's chat template is not the base's.")
    for entry in ledger.entries:
        if entry.role == EDIT:
            text = site.edited.decode(entry.encoding.ids)
            if own(text)["input_ids"] != tokenizer(text)["input_ids"]:
                raise ModelError(
                    f"The saved model's tokenizer ({type(tokenizer).__name__}) reads {text!r} "
                    f"otherwise than the base's ({type(own).__name__}): name the tokenizer_class "
                    "in the base's tokenizer_config.json."
                )


@torch.no_grad()
def activation_ranges(site: Site, ledger: Ledger) -> dict[int, ActivationRange]:
    """Return the activations of each block's neurons on all probes of a ledger."""
    return {
        block: _range(bank, _queries(site, ledger, bank))
        for block, bank in site.edited.plain_neurons.items()
    }


def _queries(site: Site, ledger: Ledger, bank: NeuronBank) -> Iterator[torch.Tensor]:
    """Yield the queries [r, d] of all probes at a bank's place: at the last FFN those of the
    answers' positions, as all others change nothing there; elsewhere of all tokens."""
    if bank.place == site.place and site.has_rows:
        yield ledger.rows.query
        return
    for batch in length_sorted([entry.encoding for entry in ledger.entries]):
        with site.edited.mount(bank.place).shown() as queries:
            site.judge_in_full([ledger.entries[place].encoding for place in batch])
        yield torch.cat([query.flatten(0, -2) for query in queries])


def _range(bank: NeuronBank, queries: Iterator[torch.Tensor]) -> ActivationRange:
    is_plain = bank.is_plain.to(bank.keys.device)
    keys, bias = bank.keys[is_plain].double(), bank.bias[is_plain].double()
    least, largest = float("inf"), 0.0
    firing, every = torch.zeros_like(keys), torch.zeros_like(keys[0])
    counts, rows_read = torch.zeros_like(bias), 0
    for rows in queries:
        for part in rows.split(ROWS_TOGETHER):
            scores = part.to(keys) @ keys.T + bias
            sizes = scores[scores != 0].abs()
            if len(sizes):
                least, largest = min(least, float(sizes.min())), max(largest, float(sizes.max()))
            is_firing = (scores > 0).to(keys)
            firing, counts = firing + is_firing.T @ part.to(keys), counts + is_firing.sum(0)
            every, rows_read = every + part.to(keys).sum(0), rows_read + len(part)
    if not rows_read:
        return UNSEEN
    means = torch.where(
        counts[:, None] > 0, firing / counts.clamp(min=1)[:, None], every / rows_read
    )
    return ActivationRange(least if least < float("inf") else None, largest, means)
