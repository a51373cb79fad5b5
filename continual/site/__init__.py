"""The last place of a model to edit: a probe's rows there, and the answers computed from them.

The place is the last FFN; in a model whose last FFN has no site, the output of its last block,
which is then both the query and the residual sum.

The query q and the residual sum h at the last FFN do not depend on any neuron there. A probe is
therefore kept as *rows*, one (q, h) per answer position, and its answer under any neurons is one
norm and one projection: logits = tail(h + relu(q·K + b)·V). Knows rows, and the answers that
neurons give on them; leaves the inputs of probes, and judging by whole passes, to `TaskModel`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from continual.effects.gated import NeuronBank
from continual.effects.places import GatePlace
from continual.execution import Executor
from continual.execution.local import LOCAL
from continual.model import EditedModel
from continual.passes.partial import Recording
from continual.passes.site_pass import SitePass
from continual.patches.neuron import NeuronPatch
from continual.reading import RowTexts
from continual.site.remembered import PatchedSums, RowAnswers
from continual.site.rows import Rows
from continual.task_model import TaskModel
from continual.tasks import Encoding, Task, sequences
from continual.verdicts import Verdict, verdict_of

LOGITS_MAX = 2**24
ROWS_REMEMBERED_MAX = 64


class Site(TaskModel):
    """The last FFN of an edited model, for one task. Used within the model's `with` block."""

    def __init__(self, edited: EditedModel, task: Task, executor: Executor = LOCAL) -> None:
        super().__init__(edited, task, executor)
        self._pass = SitePass(edited.model, edited.anatomy)
        self._sums = PatchedSums(edited)
        self._answers = RowAnswers(edited, self._by_tail, self.tie)
        self._recordings: tuple[int, dict[tuple[Encoding, ...], Recording]] = (0, {})

    @property
    def place(self) -> GatePlace:
        """The place of the site's neurons: the last FFN, or the last block's output."""
        return self.edited.site_place

    @property
    def block(self) -> int:
        """The place's block."""
        return self.edited.anatomy.last

    @property
    def bank(self) -> NeuronBank:
        """The neurons at this place."""
        return self.edited.site_bank

    def recordings_at(self, block: int) -> dict[tuple[Encoding, ...], Recording]:
        """Return the passes of probes recorded in this process at a block, by their probes; those
        at any other block are forgotten. They hold while nothing in front of the block is edited.
        """
        if self._recordings[0] != block:
            self._recordings = (block, {})
        return self._recordings[1]

    # -- rows

    def rows(self, encodings: Sequence[Encoding]) -> Rows:
        """Read the rows of these probes, in one forward pass over them alone.

        The same probes in the same order give the same bits.
        """
        edited = self.edited
        with edited.before_last_neurons():
            inputs = self.inputs(encodings)
            read, owners = sequences(encodings)
            size = max(len(encoding.ids) for encoding in read)
            places = [
                i * size + p for i, e in zip(owners, encodings, strict=True) for p in e.positions
            ]
            device = edited.site_device
            query, hidden = self._pass(
                inputs, torch.tensor(places, device=device), is_whole=edited.moves_rows
            )
        targets = [target for encoding in encodings for target in encoding.targets]
        rows = (query.clone().float(), hidden.clone().float())  # clones: autograd can use them
        return Rows(*rows, torch.tensor(targets, device=device), self.texts(encodings))

    def texts(self, encodings: Sequence[Encoding]) -> RowTexts:
        """Return the words read up to the rows of these probes."""
        read = [(e.ids, place + 1) for e in encodings for place in e.positions]
        return RowTexts(self.edited.decode, read)

    def rows_in_passes(self, encodings: Sequence[Encoding]) -> Rows:
        """Read the rows of many probes in passes of nearly one length, and return them in the
        probes' order."""
        return Rows.join(self.in_passes(self._rows_by_probe, encodings))

    def _rows_by_probe(self, encodings: Sequence[Encoding]) -> tuple[Rows, ...]:
        return self.rows(encodings).split([len(encoding.targets) for encoding in encodings])

    # -- answers

    def patched(self, rows: Rows) -> Tensor:
        """Return h [n, d] with the neurons' sum added."""
        if len(rows) <= ROWS_REMEMBERED_MAX:
            return self._sums.of(rows)
        extra = self.bank.contribution(rows.query, rows.texts)
        return rows.hidden if extra is None else rows.hidden + extra

    def patched_with(self, rows: Rows, patch: NeuronPatch) -> Tensor:
        """Return h [n, d] as it will be, to the bit, if this patch is put on next."""
        return self._sums.with_next(rows, patch)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [n, vocab] of residual sums [n, d], in float32."""
        if hidden.requires_grad or len(hidden) > ROWS_REMEMBERED_MAX:
            return self._by_tail(hidden)
        return self._answers.of(hidden).logits

    def verdict(self, hidden: Tensor, targets: Tensor) -> Verdict:
        """Judge residual sums [n, d] against targets: those of the first rows, or of all."""
        if len(hidden) > ROWS_REMEMBERED_MAX:
            return verdict_of(self._by_tail(hidden), targets, self.tie)
        return self._answers.of(hidden).leading.verdict(targets)

    @torch.no_grad()
    def judge(self, rows: Rows) -> Verdict:
        """Tell which rows have their target as the arg-max, with the present neurons."""
        hidden = self.patched(rows)
        size = max(1, LOGITS_MAX // self.choices)
        return Verdict.join(
            [
                self.verdict(hidden[i : i + size], rows.targets[i : i + size])
                for i in range(0, len(rows), size)
            ]
        )

    def is_right(self, encoding: Encoding, rows: Rows) -> bool:
        """Tell whether a probe is right, from the first of these rows, which are its own; by a pass
        over it alone if rows do not determine the answer."""
        if not self.edited.is_read_off_rows:
            return self.judge_alone(encoding)
        with torch.no_grad():  # judges all rows at once: an editor will ask for all of them
            verdict = self.verdict(self.patched(rows), rows.targets[: len(encoding.targets)])
        if bool(verdict.close.any()):
            return self.judge_alone(encoding)
        return bool(verdict.right.all())

    def are_right(
        self, encodings: Sequence[Encoding], rows: Rows, chosen: Sequence[int]
    ) -> list[bool]:
        """Tell for each of the `chosen` probes whether it is right. `rows` are the rows of all
        probes, one probe's after another's: the ledger will ask for all of them. Judges by whole
        passes if rows do not determine the answer."""
        if not chosen:
            return []
        if not self.edited.is_read_off_rows:
            return self.judge_in_full([encodings[i] for i in chosen])
        sizes = [len(encoding.targets) for encoding in encodings]
        verdict = self.judge(rows)
        right, close = verdict.right.split(sizes), verdict.close.split(sizes)
        return [
            self.judge_alone(encodings[i]) if bool(close[i].any()) else bool(right[i].all())
            for i in chosen
        ]

    def _by_tail(self, hidden: Tensor) -> Tensor:
        return self.tail(hidden.to(self.dtype)).float()
