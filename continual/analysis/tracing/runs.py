"""The runs of a trace: clean and corrupted ones, recorded; corrupted ones with states restored.

`Runner` is the contract, and holds what both ways of running share: `WholePasses` here runs the
whole model for every restoration, with hooks, and takes any decoder; `ends` runs only the blocks
and tokens that can differ. Knows tensors and modules; leaves the choice of places to `tracer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from continual import hooks
from continual.analysis.tracing.cases import Case, CaseRows
from continual.analysis.tracing.modules import STATE, RestorableModel
from continual.passes.partial import logits_of

LOGITS_MAX = 2**26  # of one projection to the vocabulary, or of one whole pass


@dataclass(frozen=True)
class AnsweredSequence:
    """A prompt with its answer's tokens but the last, and the places of the answer."""

    ids: tuple[int, ...]  # N of them
    subject: tuple[int, ...]  # positions of the subject's tokens
    positions: tuple[int, ...]  # where the answer's A tokens are predicted
    targets: tuple[int, ...]


@dataclass(frozen=True)
class AnswerScores:
    """The scores of the answer's tokens in some runs."""

    logs: Tensor  # [.., A] log-probabilities, float64
    leading: Tensor  # [.., A] tokens with the highest logit


@dataclass(frozen=True)
class CorruptedRuns:
    """One clean run and S corrupted ones, recorded."""

    sequence: AnsweredSequence
    noise: Tensor  # [S, subject tokens, e] on the output of the embedding
    entering: Tensor  # [1 + S, N, d] the states that enter the first block; the clean run is first
    outputs: Mapping[str, Sequence[Tensor]]  # of each block by kind, [1 + S, N, d]
    scores: AnswerScores  # [1 + S, A]

    @property
    def draws(self) -> int:
        """The number of corrupted runs, S."""
        return len(self.noise)

    def clean(self, kind: str, block: int, rows: CaseRows) -> Tensor:
        """Return the clean outputs [K, d] of a kind of module, at restored rows; block -1 is the
        state that enters the first block."""
        states = self.entering if block < 0 else self.outputs[kind][block]
        return states[0][rows.position[rows.restored]]

    def corrupted(self, kind: str, block: int, rows: CaseRows) -> Tensor:
        """Return the corrupted outputs [K, d] of a kind of module, at restored rows."""
        places = rows.restored
        return self.outputs[kind][block][1 + rows.draw[places], rows.position[places]]


@dataclass(frozen=True)
class Override:
    """Outputs of a module that are replaced at some rows of all positions of a pass."""

    module: torch.nn.Module
    rows: Tensor  # [K]
    values: Tensor  # [K, d]

    def __call__(self, output: Tensor) -> Tensor:
        """Return the module's output [.., d] with the values at the rows."""
        flat = output.reshape(-1, output.shape[-1])
        return flat.index_copy(0, self.rows, self.values.to(flat)).view(output.shape)


class Runner(ABC):
    """Runs corrupted sequences with clean states restored."""

    way: ClassVar[str]  # in words for people

    def __init__(self, model: RestorableModel) -> None:
        self.model = model

    @abstractmethod
    def record(self, sequence: AnsweredSequence, noise: Tensor) -> CorruptedRuns:
        """Run a sequence clean and with each draw of noise [S, subject tokens, e]."""

    @abstractmethod
    def states(
        self, runs: CorruptedRuns, cases: Sequence[Case], block: int, held: str | None = None
    ) -> Tensor:
        """Restore the output of a block; block -1 restores the state that enters the first one.

        With `held`, the outputs of this kind of module stay corrupted at the restored tokens in all
        blocks above. Returns log-probabilities [cases, S, A].
        """

    @abstractmethod
    def windows(
        self,
        runs: CorruptedRuns,
        cases: Sequence[Case],
        kind: str,
        first: int,
        stops: Sequence[int],
    ) -> dict[int, Tensor]:
        """Restore the outputs of a kind of module in the blocks [first, stop), for each stop.
        Returns log-probabilities [cases, S, A] by stop."""

    def _noisy(self, runs_noise: Tensor, subject: Sequence[int]) -> Noise:
        return Noise(runs_noise, torch.tensor(subject, device=runs_noise.device))


def scores_of(logits: Tensor, targets: Sequence[int]) -> AnswerScores:
    """Return the scores [.., A] of logits [.., A, vocab]."""
    wanted = torch.tensor(targets, device=logits.device).expand(logits.shape[:-1])
    numbers = logits.float()
    target_logits = numbers.gather(-1, wanted[..., None]).squeeze(-1)
    logs = target_logits.double() - numbers.logsumexp(-1).double()
    return AnswerScores(logs.cpu(), numbers.argmax(-1).cpu())


@dataclass(frozen=True)
class Noise:
    """Noise on the embeddings of some positions, for runs one behind another."""

    values: Tensor  # [runs, subject tokens, e]
    subject: Tensor  # [subject tokens] positions

    def __call__(self, embedded: Tensor) -> Tensor:
        """Return the embeddings [runs, N, e] with the noise added."""
        noisy = embedded.clone()
        noisy[:, self.subject] += self.values.to(noisy)
        return noisy


class WholePasses(Runner):
    """Restores by hooks on passes of the whole model, with all tokens."""

    way: ClassVar[str] = "whole passes"

    @torch.no_grad()
    def record(self, sequence: AnsweredSequence, noise: Tensor) -> CorruptedRuns:
        """See `Runner.record`."""
        clean = torch.zeros_like(noise[:1])
        found: dict[str, dict[int, Tensor]] = {kind: {} for kind in self.model.modules}
        entering: list[Tensor] = []
        size = (1 + len(noise), len(sequence.ids), -1)
        modules = {
            (kind, block): module
            for kind, blocks in self.model.modules.items()
            for block, module in enumerate(blocks)
        }

        def see(key: tuple[str, int], call: hooks.Call) -> None:
            kind, block = key
            found[kind][block] = call.hidden.reshape(size)
            if key == (STATE, 0):
                entering.append(call.input.reshape(size))

        with hooks.watched(modules, see):
            scores = self._run(sequence, torch.cat([clean, noise]), ())
        outputs = {kind: [of[block] for block in sorted(of)] for kind, of in found.items()}
        return CorruptedRuns(sequence, noise, entering[0], outputs, scores)

    @torch.no_grad()
    def states(
        self, runs: CorruptedRuns, cases: Sequence[Case], block: int, held: str | None = None
    ) -> Tensor:
        """See `Runner.states`."""
        rows = self._rows(runs, cases)
        overrides = [] if block < 0 else [self._restored(runs, rows, STATE, block)]
        if held is not None:
            blocks = range(block + 1, self.model.block_count)
            overrides += [self._held(runs, rows, held, other) for other in blocks]
        return self._scored(runs, rows, overrides, is_clean_start=block < 0)

    @torch.no_grad()
    def windows(
        self,
        runs: CorruptedRuns,
        cases: Sequence[Case],
        kind: str,
        first: int,
        stops: Sequence[int],
    ) -> dict[int, Tensor]:
        """See `Runner.windows`."""
        rows = self._rows(runs, cases)
        return {
            stop: self._scored(
                runs, rows, [self._restored(runs, rows, kind, b) for b in range(first, stop)]
            )
            for stop in stops
        }

    def _rows(self, runs: CorruptedRuns, cases: Sequence[Case]) -> CaseRows:
        return CaseRows.whole(cases, runs.draws, len(runs.sequence.ids), self.model.device)

    def _restored(self, runs: CorruptedRuns, rows: CaseRows, kind: str, block: int) -> Override:
        values = runs.clean(kind, block, rows)
        return Override(self.model.modules[kind][block], rows.restored, values)

    def _held(self, runs: CorruptedRuns, rows: CaseRows, kind: str, block: int) -> Override:
        values = runs.corrupted(kind, block, rows)
        return Override(self.model.modules[kind][block], rows.restored, values)

    def _scored(
        self,
        runs: CorruptedRuns,
        rows: CaseRows,
        overrides: Sequence[Override],
        *,
        is_clean_start: bool = False,
    ) -> Tensor:
        """Return log-probabilities [cases, S, A] of runs with overrides; with a clean start the
        restored tokens get no noise."""
        noise = runs.noise.repeat(len(rows.cases), 1, 1)
        if is_clean_start:
            for index, case in enumerate(rows.cases):
                silent = [i for i, place in enumerate(runs.sequence.subject) if place in case]
                noise[index * runs.draws : (index + 1) * runs.draws, silent] = 0.0
        logs = self._run(runs.sequence, noise, overrides).logs
        return logs.view(len(rows.cases), runs.draws, -1)

    def _run(
        self, sequence: AnsweredSequence, noise: Tensor, overrides: Sequence[Override]
    ) -> AnswerScores:
        """Run the sequence with each draw of noise [B, subject tokens, e]; return scores [B, A]."""
        ids = torch.tensor([sequence.ids], device=self.model.device).expand(len(noise), -1)
        with ExitStack() as stack:
            noisy = self._noisy(noise, sequence.subject)
            stack.enter_context(hooks.altered(self.model.embedding, noisy))
            for override in overrides:
                stack.enter_context(hooks.altered(override.module, override))
            logits = logits_of(self.model.model, {"input_ids": ids})
        return scores_of(logits[:, list(sequence.positions)], sequence.targets)
