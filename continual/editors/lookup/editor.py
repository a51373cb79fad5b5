"""The look-up editor: each edit is a few rows, and nothing else changes.

An edit has a value δ = v* − k·W, found as MEMIT's are, and rows that add it to the FFN's output
where a token's key opens their gate. Each edit is keyed at one kind of token: the tries go from the
one whose gates take in more of its wordings to the other, and in the end to a value for each token
of the answer. All edits of a batch that stand at the same try are searched for together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from continual.editors.lookup.config import LookupConfig
from continual.editors.lookup.rows import RowMaker
from continual.editors.lookup.silence import SilentTokens
from continual.editors.lookup.texts import keyed
from continual.effects.places import GatePlace
from continual.locate_then_edit.contexts import write_contexts
from continual.locate_then_edit.prefixes import Prefixes
from continual.locate_then_edit.searchable import readable, unsearchable
from continual.model import EditedModel
from continual.patches import Patch
from continual.patches.lookup import LookupPatch
from continual.proposals import Edit, EditContext, Proposal


class LookupEditor:
    """A look-up at one block."""

    name = "lookup"
    attempts = 2
    tolerance = 0.5
    splits = False
    crowds = False
    narrows = True

    def __init__(self, config: LookupConfig | None = None) -> None:
        self.config = config or LookupConfig()
        self._prefixes = Prefixes()
        self._silent: SilentTokens | None = None

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        """See `Editor.edit`. A retry takes twice the steps and begins with the other kind of token;
        a retry after too much change has narrower gates. Raises CeditError for a block that the
        model does not have, or its last one."""
        site = context.site
        place, refusal = self._place(site.edited), unsearchable(site.edited)
        if refusal is not None:
            return Proposal(None, {edit.id: refusal for edit in edits})
        config = replace(self.config, steps_max=self.config.steps_max * 2**context.attempt)
        with readable(site.edited):
            silent = self._silence(context, place)
            memory = silent.memory(context.known_answers())
            contexts = write_contexts(
                site, config.contexts, config.context_tokens, context.generator
            )
            maker = RowMaker(context, config, silent, memory)
            choose = partial(
                keyed, contexts=contexts, prefixes=self._prefixes, context=context, config=config
            )
            tries = maker.begun(edits, choose)
            while pending := [one for one in tries if one.left and not one.is_made]:
                maker.make(pending)
        failed = {one.edit.id: "; ".join(one.reasons) for one in tries if not one.is_made}
        notes = {one.edit.id: one.notes for one in tries if one.is_made}
        return Proposal(_joined([part for one in tries for part in one.parts]), failed, notes)

    def _silence(self, context: EditContext, place: GatePlace) -> SilentTokens:
        """Return the silent tokens at a place, the same for all edits of a run."""
        silent = self._silent
        if silent is None or silent.site is not context.site or silent.place != place:
            silent = self._silent = SilentTokens(context.site, place)
        return silent

    def objection(self, patch: Patch, edits: Sequence[Edit], context: EditContext) -> str | None:
        """See `Editor.objection`: none."""
        return None

    def _place(self, edited: EditedModel) -> GatePlace:
        edited.anatomy.require_ffn()
        last_block = edited.anatomy.last
        block = min(round(0.5 * last_block), last_block - 1)
        block = block if self.config.block is None else self.config.block
        if not 0 <= block < last_block:
            raise self.config.refused(
                f"block = {block}: records stand below the last block, and the model has blocks 0 "
                f"to {last_block}"
            )
        return GatePlace.at(block, self.config.key)


def _joined(parts: Sequence[LookupPatch]) -> LookupPatch | None:
    """Return one patch with the rows of all parts and their owners; None without parts."""
    if not parts:
        return None
    (patch,) = LookupPatch.joined(parts)
    return patch.owned_by(tuple(owner for part in parts for owner in part.owners))
