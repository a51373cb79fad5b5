"""Probes kept at the block where weight edits begin, so that they are run again from there alone.

The probes stand in passes of nearly one length, each recorded where its hidden states enter the
first edited block; below it nothing ever changes. Rows at the last FFN are then the recorded states
taken through the blocks above, by the model's own code, so they equal the rows of whole passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from continual.passes.partial import Recording, record, rows_from
from continual.site import Site
from continual.site.rows import Rows, answer_rows
from continual.task_model import length_sorted
from continual.tasks import Encoding


@dataclass(frozen=True)
class _ProbePass:
    """Some probes, by their places among all, and their recorded pass."""

    places: tuple[int, ...]
    encodings: tuple[Encoding, ...]
    recording: Recording


class ProbePasses:
    """Growing passes of probes, recorded at one block. Used within the model's `with` block."""

    def __init__(self, site: Site, block: int) -> None:
        self._site = site
        self.block = block
        self._passes: list[_ProbePass] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, encodings: Sequence[Encoding]) -> None:
        """Append probes."""
        batches = length_sorted(encodings)
        groups = [tuple(encodings[i] for i in batch) for batch in batches]
        recordings = self._site.executor.map(self._recorded, groups)
        for batch, probes, recording in zip(batches, groups, recordings, strict=True):
            places = tuple(self._count + i for i in batch)
            self._passes.append(_ProbePass(places, probes, recording))
        self._count += len(encodings)

    def _recorded(self, encodings: Sequence[Encoding]) -> Recording:
        edited = self._site.edited
        with edited.before_last_neurons():
            inputs = self._site.inputs(encodings)
            return record(edited.model, edited.anatomy, inputs, [self.block])

    def rows(self) -> Rows:
        """Return the rows of all probes, in the order in which they came, by the model as it is
        now."""
        rows_by_place: dict[int, Rows] = {}
        for probe_pass, rows in zip(
            self._passes, self._site.executor.map(self._rows_of, self._passes), strict=True
        ):
            sizes = [len(encoding.targets) for encoding in probe_pass.encodings]
            rows_by_place.update(zip(probe_pass.places, rows.split(sizes), strict=True))
        return Rows.join(rows_by_place[place] for place in range(self._count))

    @torch.inference_mode()
    def _rows_of(self, one: _ProbePass) -> Rows:
        edited = self._site.edited
        with edited.before_last_neurons():
            states = rows_from(edited.model, edited.anatomy, one.recording, self.block)
        return answer_rows(one.encodings, *states)
