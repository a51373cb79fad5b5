"""GRACE: each edit is rows of a codebook at the FFN of one block, and nothing else changes.

Key: the FFN's query, at the prompt's last token and, with `replaced = "answer"`, at each token of
the answer but its last. Value: the vector that replaces the FFN's output there. While the answer is
generated, each of its tokens shows the key of the next one, so that an answer of several tokens is
read to its end; behind it, no entry has a key.

Differences from the public code: a label is the tokens themselves, not their mean; a written value
is never changed, so that right answers stay right: an entry of the same label grows only if its
value answers the new input as it is, and otherwise the new input has an entry of its own; radii at
a clash only shrink.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from continual.editors.grace.config import GraceConfig
from continual.editors.grace.scale import FALLBACK, key_distance
from continual.editors.grace.training import Keyed, KeyedPass, TrainedValues, train
from continual.editors.scaffold import scaffold
from continual.effects.codebook import AnswerTokens
from continual.effects.places import GatePlace
from continual.model import EditedModel
from continual.passes.suffix import keeps_prefixes
from continual.patches import Patch
from continual.patches.codebook import CodebookPatch
from continual.proposals import Edit, EditContext, Proposal

BLUR = 2.0**-10
BLUR_ROUNDINGS = 4
"""The distance by which rounding may move a key, as a share of its length: BLUR, or in half
precision BLUR_ROUNDINGS roundings of the model's number format, whichever is more."""


@dataclass(frozen=True)
class _EditRows:
    """The rows of one edit, and the result of their training."""

    edit: Edit
    block: int
    texts: KeyedPass
    labels: tuple[AnswerTokens, ...]
    radii: Tensor  # [n] ε₀
    blurs: Tensor  # [n]
    entries: Mapping[int, int]  # by row: the entry whose value it shares
    trained: TrainedValues

    @property
    def reason(self) -> str:
        """The reason for a failure, in a sentence for people."""
        steps, loss = self.trained.steps, self.trained.loss
        return f"no value that gives its target was found in {steps} steps (loss {loss:.2g})"

    @property
    def notes(self) -> dict[str, Any]:
        """The notes on the edit that `cedit show` prints."""
        return {
            "steps": self.trained.steps,
            "loss": round(self.trained.loss, 4),
            "epsilon": float(f"{float(self.radii.max()):.3g}"),
            "entries": len(self.labels) - len(self.entries),
            "shared": len(self.entries),
        }

    def patch(self) -> CodebookPatch:
        """Return the rows as a patch."""
        return CodebookPatch(
            self.block,
            self.texts.keys.cpu(),
            self.trained.values.cpu(),
            self.radii.cpu(),
            self.blurs.cpu(),
            self.labels,
            tuple(row in self.entries for row in range(len(self.labels))),
            (self.edit.id,) * len(self.labels),
        )


class Grace:
    """A codebook at one block."""

    name = "grace"
    attempts = 2
    tolerance = 0.5
    splits = False
    crowds = False
    narrows = True

    def __init__(self, config: GraceConfig | None = None) -> None:
        self.config = config or GraceConfig()
        self._distance: tuple[tuple[str, int, int], float | None] | None = None
        self._packs: tuple[str, bool] | None = None

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        """See `Editor.edit`. Makes one edit after another, each on top of the earlier ones. A retry
        takes twice the steps; a retry after too much change takes half of the radius. Raises
        CeditError for a block that the model does not have, or its last one."""
        edited = context.site.edited
        failed: dict[str, str] = {}
        notes: dict[str, dict[str, Any]] = {}
        parts: list[CodebookPatch] = []
        with scaffold(edited):
            for edit in edits:
                rows = self._rows(edit, context)
                if not rows.trained.is_right:
                    failed[edit.id] = rows.reason
                    continue
                notes[edit.id] = rows.notes
                parts.append(rows.patch())
                edited.put(parts[-1:])
        return Proposal(_joined(parts), failed, notes)

    def objection(self, patch: Patch, edits: Sequence[Edit], context: EditContext) -> str | None:
        """See `Editor.objection`: none."""
        return None

    def _rows(self, edit: Edit, context: EditContext) -> _EditRows:
        """Make the rows of an edit, with the values of near entries if these give its target, else
        with values of its own."""
        block = self._block(context.site.edited)
        encodings = edit.encodings if self.config.rephrases else edit.encodings[: edit.forms]
        tokens = slice(None if self.config.replaced == "answer" else 1)
        keyed = [Keyed(text, text.positions[tokens]) for text in encodings]
        texts = KeyedPass(context.site, block, keyed, self._keeps_prefixes(context.site.edited))
        labels = tuple(
            keyed_text.text.targets[i:]
            for keyed_text in keyed
            for i in range(len(keyed_text.tokens))
        )
        lengths = texts.keys.norm(dim=1)
        blurs = lengths * max(BLUR, BLUR_ROUNDINGS * torch.finfo(context.site.dtype).eps)
        radii = torch.maximum(self._radii(lengths, context), blurs)
        book = CodebookPatch.book(context.site.edited, block)
        near = {
            row: entry
            for row, label in enumerate(labels)
            if (entry := book.shared(texts.keys[row], float(radii[row]), label)) is not None
        }
        config = replace(self.config, steps_max=self.config.steps_max * 2**context.attempt)
        known_values = {row: book.values[entry] for row, entry in near.items()}
        trained = train(texts, known_values, config, context.generator)
        if near and not trained.is_right:
            near, trained = {}, train(texts, {}, config, context.generator)
        return _EditRows(edit, block, texts, labels, radii, blurs, near, trained)

    def _block(self, edited: EditedModel) -> int:
        last_block = edited.anatomy.last
        block = min(round(0.75 * last_block), last_block - 1)
        block = block if self.config.block is None else self.config.block
        if not 0 <= block < last_block:
            raise self.config.refused(
                f"block = {block}: the codebook stands below the last block, and the model has "
                f"blocks 0 to {last_block}"
            )
        return block

    def _radii(self, lengths: Tensor, context: EditContext) -> Tensor:
        """Return ε₀ [n] of keys of these lengths [n]."""
        narrow = 2.0**-context.narrow
        if self.config.epsilon is not None:
            return torch.full_like(lengths, self.config.epsilon * narrow)
        distance = self._own_distance(context)
        if distance is None:
            return lengths * (FALLBACK * narrow)
        return torch.full_like(lengths, self.config.epsilon_share * distance * narrow)

    def _own_distance(self, context: EditContext) -> float | None:
        """See `key_distance`; read once in the life of the editor, which is a run's."""
        edited = context.site.edited
        name = (edited.base.fingerprint, len(context.known_answers().training), context.seed)
        if self._distance is None or self._distance[0] != name:
            place = GatePlace.at(self._block(edited))
            self._distance = name, key_distance(context, place)
        return self._distance[1]

    def _keeps_prefixes(self, edited: EditedModel) -> bool:
        name = edited.base.fingerprint
        if self._packs is None or self._packs[0] != name:
            self._packs = name, keeps_prefixes(edited.model, edited.anatomy)
        return self._packs[1]


def _joined(parts: Sequence[CodebookPatch]) -> CodebookPatch | None:
    """Return one patch with the rows of all parts and their owners; None without parts."""
    if not parts:
        return None
    (patch,) = CodebookPatch.joined(parts)
    return patch.owned_by(tuple(owner for part in parts for owner in part.owners))
