"""KN: knowledge neurons as an editor (Dai et al. 2022, section 4.2).

For each token of the new answer that the model does not say, with the new answer's tokens before it
in front, the token that it says instead is attributed to the FFN neurons of all blocks. The values
of the highest ones, their rows V_i of the output matrices, change by

    −λ1·‖V_i‖·e(old)/‖e(old)‖ + λ2·‖V_i‖·e(new)/‖e(new)‖

with e the word embeddings. All neurons of a token in one block get multiples of one vector, so that
it is one column of a low-rank patch. Published for facts that a masked model has right, with the
neurons left out that other facts of the relation share; a single request does not know these. It is
the weakest of the editors: nothing makes the new token win, and the value changes for all texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from continual.analysis.neurons import FfnNeuron, GoldToken, PassMaker, attribute
from continual.analysis.neurons.choosing import neurons_above, shared_by
from continual.editors.kn.config import KnConfig
from continual.errors import EditError
from continual.model import EditedModel
from continual.patches import Patch
from continual.patches.low_rank import Factors, FfnLowRankPatch
from continual.proposals import Edit, EditContext, Proposal
from continual.tasks import Encoding

SHARED_MIN = 3  # prompts whose neurons are shared by `share`; of fewer by all


@dataclass(frozen=True)
class TokenChange:
    """One token that the model is to say in the place of another, and the neurons to rewrite."""

    edit: str
    old: int
    new: int
    neurons: tuple[FfnNeuron, ...]


class Kn:
    """Values of knowledge neurons, rewritten."""

    name = "kn"
    attempts = 2
    tolerance = 0.5
    splits = False
    crowds = False
    narrows = True

    def __init__(self, config: KnConfig | None = None) -> None:
        self.config = config or KnConfig()

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        """See `Editor.edit`. All attributions are of the model as it stands. A retry adds twice as
        much to twice as many neurons; one after too much change half as much.

        Raises ModelError for a model without FFNs that add to the residual sum, EditError for one
        whose word embeddings are of another width.
        """
        edited = context.site.edited
        edited.anatomy.require_ffn()
        table = self._table(edited)
        passes = PassMaker(edited.model, edited.anatomy, has_gates=bool(edited.open_gates))
        count = self.config.neurons_max * 2**context.attempt
        changes: list[TokenChange] = []
        failed: dict[str, str] = {}
        notes: dict[str, dict[str, Any]] = {}
        for edit in edits:
            found = [
                change
                for number in range(len(edit.encodings[0].targets))
                if (change := self._change(edit, number, passes, count)) is not None
            ]
            if not any(change.neurons for change in found):
                failed[edit.id] = (
                    "no neuron was found that the present answer is owed to: go on with another "
                    f"editor, or lower of_max and share under [{self.config.table}]"
                )
                continue
            changes += found
            notes[edit.id] = {
                "tokens": len(found),
                "neurons": [str(neuron) for change in found for neuron in change.neurons],
            }
        scale = 2.0 ** (context.attempt - context.narrow)
        return Proposal(self._patch(changes, edited, table, scale), failed, notes)

    def objection(self, patch: Patch, edits: Sequence[Edit], context: EditContext) -> str | None:
        """See `Editor.objection`: none."""
        return None

    def _table(self, edited: EditedModel) -> Tensor:
        """Return the word embeddings [vocab, d]. Raises EditError if they are of another width than
        the values."""
        model = edited.model
        is_input = self.config.embedding == "input"
        module = model.get_input_embeddings() if is_input else model.get_output_embeddings()
        table = getattr(module, "weight", None)
        if not isinstance(table, Tensor) or table.shape[-1] != edited.anatomy.width:
            raise EditError(
                f"kn adds word embeddings to values of width {edited.anatomy.width}, and the "
                f"model's {self.config.embedding} embeddings are of another width, or there are "
                f'none: set embedding under [{self.config.table}] to the other of "input" and '
                '"output", or choose another editor.'
            )
        return table

    def _change(self, edit: Edit, number: int, passes: PassMaker, count: int) -> TokenChange | None:
        """Return the change for one token of the answer; None if the model says it already."""
        first = _gold(edit.encodings[0], number)
        old = int(passes.read(first).logits.argmax())
        if old == first.target:
            return None
        scores = [
            attribute(
                passes, [replace(_gold(encoding, number), target=old)], self.config.steps
            ).scores
            for encoding in edit.encodings
            if number < len(encoding.targets)
        ]
        share = self.config.share if len(scores) >= SHARED_MIN else 1.0
        shared = shared_by([neurons_above(s, self.config.of_max) for s in scores], share)
        mean = torch.stack(scores).mean(0)
        ranked = sorted(shared, key=lambda n: (-float(mean[n.block, n.place]), n))
        return TokenChange(edit.id, old, first.target, tuple(ranked[:count]))

    def _patch(
        self, changes: Sequence[TokenChange], edited: EditedModel, table: Tensor, scale: float
    ) -> FfnLowRankPatch | None:
        """Return a patch with a column for each change; None without any. A block without neurons
        of a change has a column of zeros for it."""
        blocks = sorted({neuron.block for change in changes for neuron in change.neurons})
        if not blocks:
            return None
        rows = torch.stack([scale * self._direction(change, table) for change in changes])
        factors: Mapping[int, Factors] = {
            block: Factors(_lengths(changes, block, edited.weight(block).sum), rows)
            for block in blocks
        }
        return FfnLowRankPatch.of(factors, owners=tuple(change.edit for change in changes))

    def _direction(self, change: TokenChange, table: Tensor) -> Tensor:
        """Return λ2·e(new)/‖e(new)‖ − λ1·e(old)/‖e(old)‖ [d] float32, on the CPU."""
        old, new = (table[token].float().cpu() for token in (change.old, change.new))
        config = self.config
        towards: Tensor = config.new_weight * new / new.norm()
        away: Tensor = config.old_weight * old / old.norm()
        return towards - away


def _lengths(changes: Sequence[TokenChange], block: int, values: Tensor) -> Tensor:
    """Return ‖V_i‖ at the places of each change's neurons, zero elsewhere: [d_ff, n]."""
    left = torch.zeros(len(values), len(changes))
    for column, change in enumerate(changes):
        for neuron in change.neurons:
            if neuron.block == block:
                left[neuron.place, column] = float(values[neuron.place].norm())
    return left


def _gold(encoding: Encoding, number: int) -> GoldToken:
    """Return one token of an encoded answer."""
    question, targets = encoding.question, encoding.targets
    ids = (*question.ids, *targets[:number])
    return GoldToken(ids, encoding.positions[number], targets[number], question.source)
