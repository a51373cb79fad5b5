"""Probes kept at the block where weight edits begin, so that they are run again from there alone.

The probes stand in passes of nearly one length, each recorded where its hidden states enter the
first edited block; below it nothing ever changes. Rows at the last FFN are then the recorded states
taken through the blocks above, by the model's own code, so they equal the rows of whole passes. A
recording stays in the process that runs its pass: the executor's workers make recordings of their
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from continual.passes.partial import Recording, record, rows_from
from continual.site import Site
from continual.site.rows import Rows, answer_rows
from continual.task_model import length_sorted
from continual.tasks import Encoding


@dataclass(frozen=True)
class _ProbePass:
    """Some probes, by their places among all."""

    places: tuple[int, ...]
    encodings: tuple[Encoding, ...]


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
        for batch in length_sorted(encodings):
            places = tuple(self._count + i for i in batch)
            probes = tuple(encodings[i] for i in batch)
            self._passes.append(_ProbePass(places, probes))
        self._count += len(encodings)

    def rows(self) -> Rows:
        """Return the rows of all probes, in the order in which they came, by the model as it is
        now."""
        rows_by_place: dict[int, Rows] = {}
        read = partial(_rows_from_block, self._site, self.block)
        groups = [probe_pass.encodings for probe_pass in self._passes]
        for probe_pass, rows in zip(
            self._passes, self._site.executor.map(read, groups), strict=True
        ):
            sizes = [len(encoding.targets) for encoding in probe_pass.encodings]
            rows_by_place.update(zip(probe_pass.places, rows.split(sizes), strict=True))
        return Rows.join(rows_by_place[place] for place in range(self._count))


def _rows_from_block(site: Site, block: int, encodings: tuple[Encoding, ...]) -> Rows:
    """Return the rows of one pass, from where its states enter the block; the pass is recorded when
    it is read first."""
    edited, recordings = site.edited, site.recordings_at(block)
    if encodings not in recordings:
        recordings[encodings] = _recorded(site, block, encodings)
    with torch.inference_mode(), edited.before_last_neurons():
        states = rows_from(edited.model, edited.anatomy, recordings[encodings], block)
        return answer_rows(encodings, *states)


def _recorded(site: Site, block: int, encodings: tuple[Encoding, ...]) -> Recording:
    edited = site.edited
    with edited.before_last_neurons():
        return record(edited.model, edited.anatomy, site.inputs(encodings), [block])
