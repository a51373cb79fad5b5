"""The CaliNet editor: a batch of requests becomes one block of slots, which all of them share.

The slots of one batch do not know those of another. Past edits and the rest of the memory ask for
no shift, and so a later batch leaves earlier ones alone as far as it can; as published nothing
does. The activation is ReLU, as in the paper's T5, whatever the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from continual.editors.calinet.config import CalinetConfig
from continual.editors.calinet.training import OwnRows, SilentRows, SlotTraining, TrainedSlots
from continual.errors import EditError
from continual.patches import Patch
from continual.patches.slots import SlotsPatch
from continual.proposals import Edit, EditContext, Proposal
from continual.site import LOGITS_MAX, Site
from continual.site.rows import Rows

STEPS_GROWTH = 4
"""The factor by which a retry may take more steps."""
SILENCE_GROWTH = 4.0
"""The factor of the silent term's weight in a retry of an edit that changed too much."""


class Calinet:
    """Slots beside the last FFN, trained on its rows for all requests of a batch together."""

    name = "calinet"
    attempts = 2
    tolerance = 0.5
    splits = False
    crowds = False
    narrows = True

    def __init__(self, config: CalinetConfig | None = None) -> None:
        self.config = config or CalinetConfig()

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        """See `Editor.edit`. A request whose prompt is still wrong in the end fails; if others are
        right, they keep the slots, although the failed request shaped them too.

        Raises EditError for a model whose answers do not follow from rows of its last FFN.
        """
        _require_rows(context.site)
        config = self._budget(context)
        texts = edits if config.rephrases else [edit.alone() for edit in edits]
        rows = Rows.join(part for edit in texts for part in edit.rows)
        own = OwnRows(rows.query, context.site.patched(rows).detach(), rows.targets)
        result = SlotTraining(
            own,
            _silent(context),
            context.site.logits,
            config,
            context.generator,
            rows_max=max(1, LOGITS_MAX // context.site.choices),
        ).run()
        if not bool(result.losses.isfinite().all()):
            return Proposal(None, {edit.id: _diverged(result, config) for edit in edits})
        return _proposal(texts, self._right(own, result, context.site), result, context.site)

    def objection(self, patch: Patch, edits: Sequence[Edit], context: EditContext) -> str | None:
        """See `Editor.objection`: none."""
        return None

    def _budget(self, context: EditContext) -> CalinetConfig:
        return replace(
            self.config,
            steps_max=self.config.steps_max * STEPS_GROWTH**context.attempt,
            silent_weight=self.config.silent_weight * SILENCE_GROWTH**context.narrow,
        )

    @staticmethod
    def _right(own: OwnRows, result: TrainedSlots, site: Site) -> Tensor:
        """Return [n] bool: the own rows whose target leads by more than rounding."""
        verdict = site.verdict(own.hidden + result.slots.shifts(own.query), own.targets)
        return verdict.right & ~verdict.close


def _require_rows(site: Site) -> None:
    if not site.has_rows:
        raise EditError(
            "calinet trains on rows of the last FFN, and this model's answers do not follow from "
            "them: choose another editor, such as ft-last or tpatcher."
        )


def _silent(context: EditContext) -> SilentRows:
    training = context.memory.training
    return SilentRows(training, context.memory.all()[len(training) :])


def _diverged(result: TrainedSlots, config: CalinetConfig) -> str:
    return (
        f"its training ran into NaN or infinity after {result.steps} steps: set a lower "
        f"learning_rate under [{config.table}]"
    )


def _proposal(edits: Sequence[Edit], right: Tensor, result: TrainedSlots, site: Site) -> Proposal:
    """Return the patch, with a reason for every request whose prompt is wrong in one of its
    forms."""
    failed: dict[str, str] = {}
    start = 0
    for edit in edits:
        sizes = [len(part) for part in edit.rows]
        losses = result.losses[start : start + sum(sizes[: edit.forms])]
        if not bool(right[start : start + len(losses)].all()):
            failed[edit.id] = (
                f"still wrong after {result.steps} steps of the slots' training "
                f"(loss {float(losses.max()):.2g})"
            )
        start += sum(sizes)
    if len(failed) == len(edits):
        return Proposal(None, failed)
    owners = tuple(edit.id for edit in edits)
    patch = SlotsPatch(site.place, result.slots.keys, result.slots.values, owners)
    note = {"steps": result.steps, "slots": patch.rows}
    return Proposal(patch, failed, {owner: dict(note) for owner in owners if owner not in failed})
