"""Divides a batch into slots: each neuron gets the rows of the edits that it is for.

Knows rows and their answers before the edit; leaves their place in the model to its ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from continual.editors.tpatcher.competing import CompetingTokens
from continual.editors.tpatcher.config import TPatcherConfig
from continual.editors.tpatcher.training import Slots
from continual.proposals import Edit
from continual.site.rows import Rows

TOO_MANY = (
    "{} of its tokens are wrong, and it has {} neurons: raise neurons_max under [editor.tpatcher]"
)


@dataclass(frozen=True)
class NeuronPlan:
    """The rows of a batch, and the owned rows of each neuron."""

    rows: Rows  # every answer row of every edit
    before: CompetingTokens  # of the rows
    own: tuple[tuple[int, ...], ...]  # rows of each slot
    owner: tuple[int, ...]  # the edit of each slot
    reached: Tensor | None = None  # [slots, r, d] queries to train values at, unless the own ones

    @property
    def value_slots(self) -> Slots:
        """The slots that values are trained on."""
        return self.slots if self.reached is None else replace(self.slots, query=self.reached)

    @cached_property
    def slots(self) -> Slots:
        """The own rows of all slots, padded with their first."""
        widest = max(map(len, self.own))
        index = torch.tensor([[*rows, *[rows[0]] * (widest - len(rows))] for rows in self.own])
        real = torch.tensor([[i < len(rows) for i in range(widest)] for rows in self.own])
        hidden = self.before.hidden
        return Slots(
            self.rows.query[index], hidden[index], self.rows.targets[index], real.to(hidden.device)
        )

    def chosen(self, slots: Sequence[int]) -> NeuronPlan:
        """Return a plan with these slots alone; the rows of all edits stay."""
        own_rows = tuple(self.own[slot] for slot in slots)
        owner = tuple(self.owner[slot] for slot in slots)
        reached = None if self.reached is None else self.reached[list(slots)]
        return replace(self, own=own_rows, owner=owner, reached=reached)

    def places(self, edits: Sequence[Edit]) -> tuple[int, ...]:
        """Return the answer position that each slot is for."""
        sizes = [sum(map(len, edit.rows)) for edit in edits]
        starts = list(accumulate(sizes, initial=0))
        return tuple(
            (slot_rows[0] - starts[number]) % len(edits[number].encodings[0].targets)
            for slot_rows, number in zip(self.own, self.owner, strict=True)
        )

    def rivals(self) -> Tensor | None:
        """Return the competing tokens of all slots; None if the survey did not ask for them."""
        tokens = self.before.rivals
        return None if tokens is None else tokens[[row for rows in self.own for row in rows]]

    def foreign(self) -> Tensor:
        """Return [slots, rows] bool: the rows of the batch on which a slot has to stay silent."""
        mask = [[row not in rows for row in range(len(self.rows))] for rows in self.own]
        return torch.tensor(mask, device=self.before.hidden.device)


def planned(
    edits: Sequence[Edit], rows: Rows, before: CompetingTokens, config: TPatcherConfig
) -> tuple[NeuronPlan, dict[str, str]]:
    """Plan one slot for every answer position at which the prompt or a rephrase is wrong, from the
    rows of all edits and their answers `before`; return also the reasons why some edits have
    none."""
    wrong = (~before.verdict.right | before.verdict.close).tolist()
    own_rows: list[tuple[int, ...]] = []
    owner: list[int] = []
    failed: dict[str, str] = {}
    start = 0
    for number, edit in enumerate(edits):
        starts = []
        for part in edit.rows:
            starts.append(start)
            start += len(part)
        slots = _wrong_positions(edit, starts, wrong)
        neurons_max = config.neurons_max * edit.forms
        if len(slots) > neurons_max:
            failed[edit.id] = TOO_MANY.format(len(slots), neurons_max)
            continue
        own_rows += slots
        owner += [number] * len(slots)
    return NeuronPlan(rows, before, tuple(own_rows), tuple(owner)), failed


def _wrong_positions(
    edit: Edit, starts: Sequence[int], wrong: Sequence[bool]
) -> list[tuple[int, ...]]:
    """Return, for each answer position that is wrong in some text, its row in the prompt and in
    each rephrase.

    A form of the prompt whose answer has other tokens has its own positions. A rephrase whose
    answer has the tokens of no form has no such row.
    """
    answers = dict.fromkeys(encoding.targets for encoding in edit.encodings[: edit.forms])
    columns: list[tuple[int, ...]] = []
    for targets in answers:
        alike = [
            start
            for start, encoding in zip(starts, edit.encodings, strict=True)
            if encoding.targets == targets
        ]
        columns += [tuple(start + place for start in alike) for place in range(len(targets))]
    return [column for column in columns if any(wrong[row] for row in column)]
