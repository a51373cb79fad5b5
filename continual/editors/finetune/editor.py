"""The fine-tuning editors: each chooses the parameters to train and the restraint on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Generic, TypeVar

import torch

from continual.editors.finetune.config import (
    FineTuneConfig,
    FineTuneKlConfig,
    FtAllConfig,
    FtAllKlConfig,
    FtLastConfig,
    FtLastKlConfig,
    FtLConfig,
)
from continual.editors.finetune.losses import Anchors, Restraint, anchored
from continual.editors.finetune.training import Diverged, Objective, TrainedDeltas, train
from continual.model import EditedModel
from continual.patches import Patch
from continual.patches.dense import DensePatch
from continual.proposals import Edit, EditContext, Proposal
from continual.storage import require_writable

TuningConfig = TypeVar("TuningConfig", bound=FineTuneConfig)
KlConfig = TypeVar("KlConfig", bound=FineTuneKlConfig)


class FineTuneEditor(ABC, Generic[TuningConfig]):
    """An editor that runs Adam on some parameters, for all edits of a batch together."""

    name: str
    attempts = 1
    tolerance = 0.5
    splits = False
    crowds = False
    narrows = False

    def __init__(self, config: TuningConfig) -> None:
        self.config = config

    @abstractmethod
    def paths(self, edited: EditedModel) -> Sequence[str]:
        """Return the parameters to train. Raises CeditError if the model does not have them."""

    def restraint(self, context: EditContext) -> Restraint | None:
        """Return the term to add to the loss of each step, if any."""
        return None

    @property
    def bound(self) -> float | None:
        """The largest change of an element; None if it is unbounded."""
        return None

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        """See `Editor.edit`. A request that is still wrong in the end fails; if others are right,
        they keep the patch, although the failed request shaped it too. Raises ModelError for a
        parameter that nothing can be written into."""
        texts = [
            edit.encodings if self.config.rephrases else edit.encodings[: edit.forms]
            for edit in edits
        ]
        paths = tuple(self.paths(context.site.edited))
        get = context.site.edited.model.get_parameter
        require_writable({path: get(path) for path in paths}, self.name)
        encodings = tuple(encoding for group in texts for encoding in group)
        objective = Objective(encodings, paths, self.restraint(context), self.bound)
        try:
            result = train(context.site, objective, self.config)
        except Diverged as error:
            return Proposal(None, {edit.id: str(error) for edit in edits})
        ends = accumulate(map(len, texts), initial=0)
        verdicts = [result.right[start] for start, _ in pairwise(ends)]  # of the prompts
        return _proposal(edits, verdicts, result, context.site.edited)

    def objection(self, patch: Patch, edits: Sequence[Edit], context: EditContext) -> str | None:
        """See `Editor.objection`: none."""
        return None


def _proposal(
    edits: Sequence[Edit], right: Sequence[bool], trained: TrainedDeltas, edited: EditedModel
) -> Proposal:
    reason = f"still wrong after {trained.steps} steps of its training (loss {trained.loss:.2g})"
    failures = {edit.id: reason for edit, ok in zip(edits, right, strict=True) if not ok}
    if len(failures) == len(edits) or not trained.deltas:
        return Proposal(None, failures)
    patch = DensePatch(
        trained.deltas,
        {path: edited.block_of(path) for path in trained.deltas},
        tuple(edit.id for edit in edits),
    )
    note = {"steps": trained.steps, "loss": round(trained.loss, 4)}
    return Proposal(patch, failures, {e.id: dict(note) for e in edits if e.id not in failures})


class _LastBlock(FineTuneEditor[TuningConfig]):
    def paths(self, edited: EditedModel) -> Sequence[str]:
        """Return all parameters of the last block."""
        inside = f"{edited.anatomy.block_path(edited.anatomy.last)}."
        return [name for name, _ in edited.model.named_parameters() if name.startswith(inside)]


class _All(FineTuneEditor[TuningConfig]):
    def paths(self, edited: EditedModel) -> Sequence[str]:
        """Return all parameters of the model; tied ones count once."""
        return [name for name, _ in edited.model.named_parameters()]


class _WithKl(FineTuneEditor[KlConfig]):
    """An editor with KL terms; it reads the base's answers once, as it lives for one run."""

    def __init__(self, config: KlConfig) -> None:
        super().__init__(config)
        self._read: tuple[tuple[str, int, int], tuple[int, ...], Anchors] | None = None

    def restraint(self, context: EditContext) -> Restraint:
        """Return KL on training probes against the base, and on past edits against the model as it
        stands."""
        known_answers = context.known_answers()
        places, base = self._base(context)
        indices = [i for i, place in enumerate(places) if place not in known_answers.contradicted]
        past_edits = list(known_answers.edits.values())
        order = torch.randperm(len(past_edits), generator=context.generator).tolist()
        sample = sorted(order[: self.config.kl_edits])
        edits = anchored(context.site, [past_edits[i] for i in sample])
        config = self.config
        return Restraint(
            context.site,
            (base[indices], edits),
            config.kl_weight,
            config.kl_batch,
            context.generator,
        )

    def _base(self, context: EditContext) -> tuple[tuple[int, ...], Anchors]:
        """Return the places of drawn training probes, which a history's seed fixes, and the base's
        answers to them."""
        training, edited = context.known_answers().training, context.site.edited
        key = (edited.base.fingerprint, len(training), context.seed)
        if self._read is None or self._read[0] != key:
            draw = torch.Generator().manual_seed(context.seed)
            numbers = torch.randperm(len(training), generator=draw)[: self.config.kl_memory]
            places = tuple(sorted(numbers.tolist()))
            with edited.bare():
                self._read = key, places, anchored(context.site, [training[i] for i in places])
        return self._read[1:]


class FtLast(_LastBlock[FtLastConfig]):
    """FT(last)."""

    name = "ft-last"

    def __init__(self, config: FtLastConfig | None = None) -> None:
        super().__init__(config or FtLastConfig())


class FtAll(_All[FtAllConfig]):
    """FT(all)."""

    name = "ft-all"

    def __init__(self, config: FtAllConfig | None = None) -> None:
        super().__init__(config or FtAllConfig())


class FtLastKl(_WithKl[FtLastKlConfig], _LastBlock[FtLastKlConfig]):
    """FT(last)+KL."""

    name = "ft-last-kl"

    def __init__(self, config: FtLastKlConfig | None = None) -> None:
        super().__init__(config or FtLastKlConfig())


class FtAllKl(_WithKl[FtAllKlConfig], _All[FtAllKlConfig]):
    """FT(all)+KL."""

    name = "ft-all-kl"

    def __init__(self, config: FtAllKlConfig | None = None) -> None:
        super().__init__(config or FtAllKlConfig())


class FtL(FineTuneEditor[FtLConfig]):
    """FT-L: one FFN output matrix, each element within ε of its value before the edit."""

    name = "ft-l"

    def __init__(self, config: FtLConfig | None = None) -> None:
        super().__init__(config or FtLConfig())

    def paths(self, edited: EditedModel) -> Sequence[str]:
        """Return the one matrix. Raises CeditError for a block that the model does not have."""
        last_block = edited.anatomy.last
        block = last_block if self.config.block is None else self.config.block
        if not 0 <= block <= last_block:
            raise self.config.refused(f"block = {block}: the model has blocks 0 to {last_block}")
        return [edited.anatomy.down_path(block)]

    @property
    def bound(self) -> float:
        """The largest change of an element: ε."""
        return self.config.norm_bound
