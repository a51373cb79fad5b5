"""A block's statistics C₀ as a method solves with them, read and prepared once in a run.

General text in memory joins C₀ by its weight; see `general_keys`. The preparation is the method's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from continual.errors import EditError
from continual.locate_then_edit.general_keys import GeneralKeys
from continual.proposals import EditContext
from continual.storage import device_of

PreparedForm = TypeVar("PreparedForm")
"""A method's preparation of C₀."""
GENERAL = "keys of general text"
"""The name of these keys in `EditContext.kept`."""

_Place = tuple[str, int]
"""The fingerprint of a base model, and a block."""


@dataclass(frozen=True)
class _Prepared(Generic[PreparedForm]):
    """A method's form of C₀ and of general text, and the text that it is of."""

    general: GeneralKeys | None
    left_out: frozenset[int]  # places of texts
    form: PreparedForm


class BlockMoments(Generic[PreparedForm]):
    """The statistics of the blocks that one editor edits."""

    def __init__(self, editor: str, prepare: Callable[[Tensor, torch.device], PreparedForm]):
        self._editor, self._prepare = editor, prepare
        self._moments: dict[_Place, Tensor] = {}
        self._prepared: dict[_Place, _Prepared[PreparedForm]] = {}
        self._general: dict[_Place, GeneralKeys] = {}

    def moment(self, block: int, context: EditContext) -> Tensor:
        """Return C₀ [d_ff, d_ff] float32 of a block. Raises EditError without statistics."""
        place = context.site.edited.base.fingerprint, block
        if place not in self._moments:
            self._moments[place] = self._read(block, context).float()
        return self._moments[place]

    def form(
        self, block: int, context: EditContext, general_weight: float, subjects: frozenset[str]
    ) -> PreparedForm:
        """Return the method's form of a block's C₀, with general text in memory at this weight but
        for the texts that name one of the normalised subjects. The latest form is kept. Raises
        EditError without statistics."""
        edited = context.site.edited
        place = edited.base.fingerprint, block
        general = self._general_keys(block, context) if general_weight else None
        left_out = frozenset[int]() if general is None else general.naming(subjects)
        prepared = self._prepared.get(place)
        if prepared is None or (prepared.general, prepared.left_out) != (general, left_out):
            moment = self._read(block, context)
            self._moments.setdefault(place, moment.float())
            held = None if general is None else general.moment(left_out)
            if held is not None:
                moment = moment + general_weight * held
            device = device_of(edited.anatomy.down_module(edited.model, block))
            prepared = _Prepared(general, left_out, self._prepare(moment, device))
            self._prepared[place] = prepared
        return prepared.form

    def _read(self, block: int, context: EditContext) -> Tensor:
        """Return C₀ [d_ff, d_ff] float64 of a block."""
        if context.statistics is None:
            raise EditError(
                f"{self._editor} needs key statistics: run `cedit train stats --text FILE`."
            )
        return context.statistics.get(block).second_moment

    def _general_keys(self, block: int, context: EditContext) -> GeneralKeys | None:
        """Return the keys of general text in memory at a block, read once in a run, and once for
        all trials; None without such text."""
        edited, texts = context.site.edited, context.known_answers().general
        place = edited.base.fingerprint, block
        shared: dict[_Place, GeneralKeys] = context.kept.setdefault(GENERAL, {})
        keys = self._general.get(place) or shared.get(place)
        if texts and (keys is None or keys.texts != texts):
            keys = GeneralKeys(edited, block, texts)
        if not texts or keys is None:
            return None
        self._general[place] = shared[place] = keys
        return keys
