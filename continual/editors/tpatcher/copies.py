"""Copies of an edit's prompt behind a few foreign words: other queries that ask the same.

A prompt alone is one point: a neuron that separates it from the memory may separate it from its
rephrases, too. The copies show the directions in which a query moves with the wording alone. They
join the own rows while key and bias are made; values are trained without them. The wordings of
other requests of the same relation, with this subject, are used like copies.

Makes the copies and chooses among them: the copies that the model answers like the prompt, or all
of them. Leaves the foreign words to `locate_then_edit.prefixes`, keys to `separating` and
`training`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.editors.tpatcher.grounds import Ground
from continual.editors.tpatcher.training import Slots
from continual.errors import RequestError
from continual.locate_then_edit.prefixes import Prefixes, behind
from continual.prompts import Prompt
from continual.proposals import Edit, EditContext
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding


@dataclass(frozen=True)
class Originals:
    """The slots of a batch, each by the prompt's row that its neuron is for."""

    edits: Sequence[Edit]
    owner: Sequence[int]  # the edit of each slot
    place: Sequence[int]  # of each slot, the answer position
    answers: Tensor  # [slots] the token that the model gives there


@torch.no_grad()
def copied(
    originals: Originals, prefixes: Prefixes, count: int, context: EditContext, ground: Ground
) -> Slots:
    """Return the rows of `count` copies of each prompt that its slots may own, padded: the model as
    it stands answers them, at the slot's place, like the prompt. Runs one pass for each edit."""
    copies = {
        number: _Copies.of(
            edit, behind(prefixes.draw(count, context), edit.request.prompt), context.site, ground
        )
        for number in dict.fromkeys(originals.owner)
        for edit in (originals.edits[number],)
    }
    slots = zip(originals.owner, originals.place, originals.answers.tolist(), strict=True)
    alike = [copies[number].answered(place, token) for number, place, token in slots]
    return _padded(alike)


@torch.no_grad()
def worded(
    originals: Originals, prefixes: Prefixes, count: int, context: EditContext, ground: Ground
) -> Slots:
    """Return the rows of `count` copies of each prompt behind whole sentences, and of its other
    wordings, whatever the model answers there, padded. Runs one pass for each edit; a retry draws
    the same sentences."""
    copies = {}
    for number in dict.fromkeys(originals.owner):
        edit = originals.edits[number]
        drawn = prefixes.draw_for(edit.id, count, context)
        prompts = [*behind(drawn, edit.request.prompt), *edit.wordings]
        copies[number] = _Copies.of(edit, prompts, context.site, ground)
    slots = zip(originals.owner, originals.place, strict=True)
    return _padded([copies[number].at(place) for number, place in slots])


@dataclass(frozen=True)
class _Copies:
    """The rows of an edit's copies, and the model's answers there."""

    rows: Rows  # [copies · positions]; `hidden` with the neurons that are on
    answers: Tensor  # [copies · positions] tokens
    positions: int  # of an answer

    @classmethod
    def of(cls, edit: Edit, prompts: Iterable[Prompt], site: Site, ground: Ground) -> _Copies:
        """Read copies with these prompts; a prompt is left out if it breaks a limit, or if its
        answer is tokenised otherwise."""
        prompt, target = edit.encodings[0], edit.request.target_new
        encodings = [e for p in prompts if (e := _encoded(p, target, site)) is not None]
        encodings = [e for e in encodings if e.targets == prompt.targets]
        if not encodings:
            none = edit.rows[0][:0]
            return cls(none, none.targets, len(prompt.targets))
        return cls(*ground.seen(encodings), len(prompt.targets))

    def at(self, place: int) -> Rows:
        """Return the rows at one answer position."""
        return self.rows[place :: self.positions]

    def answered(self, place: int, token: int) -> Rows:
        """Return the rows at one answer position of the copies that are answered with this
        token."""
        return self.at(place)[self.answers[place :: self.positions] == token]


def _encoded(prompt: Prompt, target: str, site: Site) -> Encoding | None:
    """Encode a prompt with its answer; None if a limit forbids it."""
    try:
        return site.task.encode(prompt, target)
    except RequestError:
        return None


def _padded(rows: Sequence[Rows]) -> Slots:
    """Pad the rows of each slot to one length."""
    widest = max(map(len, rows))
    real = torch.tensor(
        [[i < len(row_set) for i in range(widest)] for row_set in rows], dtype=torch.bool
    )

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        padded = [torch.cat([t, t.new_zeros(widest - len(t), *t.shape[1:])]) for t in tensors]
        return torch.stack(padded)

    return Slots(
        stacked([row_set.query for row_set in rows]),
        stacked([row_set.hidden for row_set in rows]),
        stacked([row_set.targets for row_set in rows]),
        real.to(rows[0].query.device),
    )
