"""FT(vision): fine-tunes a part of the model that only pictures go through.

Texts without a picture are answered as before, to the bit; every picture is seen otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from continual.editors.finetune.config import LAST_BLOCK, FtVisionConfig
from continual.editors.finetune.editor import FineTuneEditor
from continual.model import EditedModel
from continual.picture_marks import picture_keys
from continual.pictures import Album
from continual.proposals import Edit, EditContext, Proposal
from continual.tasks.sight import Sight

NO_PICTURE = "its prompt shows no picture, and what it trains only pictures go through"


class FtVision(FineTuneEditor[FtVisionConfig]):
    """Trains the projection of pictures, or the last block of the vision side."""

    name = "ft-vision"

    def __init__(self, config: FtVisionConfig | None = None) -> None:
        super().__init__(config or FtVisionConfig())

    def paths(self, edited: EditedModel) -> Sequence[str]:
        """Return the parameters to train, found by structure. Raises ModelError for a model that
        does not see."""
        sight = Sight(edited.base, Album())
        if self.config.part == LAST_BLOCK:
            return sight.last_block_paths
        return sight.projection_paths

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        """See `Editor.edit`. A request whose prompt shows no picture fails."""
        blind = {e.id: NO_PICTURE for e in edits if not picture_keys(e.encodings[0].ids)}
        seeing = [edit for edit in edits if edit.id not in blind]
        if not seeing:
            return Proposal(None, blind)
        proposal = super().edit(seeing, context)
        return Proposal(proposal.patch, {**proposal.failed, **blind}, proposal.notes)
