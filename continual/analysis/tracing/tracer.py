"""Traces facts: which states, restored to their clean values, bring an answer back.

Decides which places have to be run at all. Tokens before the subject are the same in the clean and
the corrupted run, and behind the last block only the token that predicts the answer counts: their
indirect effects are zero, and are not computed. Leaves the runs to a `Runner`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from continual.analysis.tracing.cases import Case, chunked
from continual.analysis.tracing.config import (
    WITHOUT,
    TracingConfig,
    window_around,
    windows_by_start,
)
from continual.analysis.tracing.ends import EndRuns, runs_in_parts
from continual.analysis.tracing.facts import TracedFact, read_fact, texts_of
from continual.analysis.tracing.modules import MODULES, STATE, RestorableModel
from continual.analysis.tracing.noise import deviation, drawn
from continual.analysis.tracing.results import (
    TRACED,
    UNKNOWN,
    WEAK,
    FactTrace,
    SecondSeed,
    TraceMap,
    TraceScore,
)
from continual.analysis.tracing.runs import (
    LOGITS_MAX,
    AnswerScores,
    CorruptedRuns,
    Runner,
    WholePasses,
    scores_of,
)
from continual.errors import CeditError, ModelError
from continual.model import EditedModel
from continual.passes.partial import logits_of
from continual.prompts import Prompt, prompt_json
from continual.tasks import Task

ROWS_MAX = 4096  # of one pass on a processor
ACCELERATED_ROWS_MAX = 32_768


class NotTraceable(CeditError):
    """A model or a task that causal tracing does not fit."""

    exit_code = 1


class Tracer:
    """Traces facts on an edited model as it stands. Used within the model's `with` block."""

    def __init__(
        self, edited: EditedModel, task: Task, config: TracingConfig, *, in_parts: bool = True
    ) -> None:
        """Look at the model, and try whether it can be run in parts; with `in_parts` off it is not.

        Raises NotTraceable for other tasks than the causal one, and ModelError for a model without
        a list of blocks.
        """
        _require_causal(task)
        self.config, self.edited, self.task, self._in_parts = config, edited, task, in_parts
        self.model = RestorableModel.of(edited.model, edited.anatomy)
        self.window = config.window_of(self.model.block_count)
        self.blocks = config.blocks_of(self.model.block_count)
        self.why_whole = self._reason(in_parts)
        self._runner: Runner = WholePasses(self.model) if self.why_whole else EndRuns(self.model)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker, which looks at its own model."""
        return _tracer, (self.edited, self.task, self.config, self._in_parts)

    def _reason(self, in_parts: bool) -> str:
        """Return the reason why restored runs go through the whole model; empty if they do not."""
        if not in_parts:
            return "runs in parts are off"
        if self.edited.open_gates:
            return "edits beside the weights read whole texts"
        name = type(self.model.model).__name__
        return "" if runs_in_parts(self.model) else f"{name} has an attention that is run whole"

    @property
    def way(self) -> str:
        """The way in which restored runs are made, in words for people."""
        return self._runner.way

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are traced: those that the model has modules of."""
        modules = [kind for kind in MODULES if kind in self.model.modules]
        held = [WITHOUT[kind] for kind in modules] if self.config.severed else []
        return (STATE, *modules, *held)

    def fact(self, prompt: Prompt, subject: str, answer: str | None = None) -> TracedFact:
        """Read a fact; without an answer it is the model's own next token. Raises SubjectAbsent and
        RequestError."""
        return read_fact(
            self.edited.model, self.edited.tokenizer, self.task, prompt, subject, answer
        )

    def deviation(self, token_ids: Iterable[int]) -> float:
        """Return the standard deviation σ of the embeddings of these tokens, of subjects."""
        return deviation(self.model, token_ids)

    def trace(
        self,
        fact: TracedFact,
        sigma: float,
        *,
        is_selective: bool = False,
        facts: dict[str, Any] | None = None,
    ) -> FactTrace:
        """Trace a fact with noise of `config.noise` times σ. With `is_selective` nothing is
        restored for a fact that the model does not answer, or that hardly depends on its subject.

        Raises ModelError if the model's probabilities are no numbers.
        """
        if is_selective and (unknown := self._unknown(fact)) is not None:
            return replace(unknown, facts=facts or {})
        with self._ready():
            runs = self._record(fact, sigma, self.config.seed)
            found = self._described(fact, runs.scores)
            if found.outcome == TRACED or not is_selective:
                maps = tuple(self._map(fact, runs, kind) for kind in self.kinds)
                found = replace(found, maps=maps)
                found = replace(found, second=self._second(fact, sigma, found))
        return replace(found, facts=facts or {})

    def _ready(self) -> Any:
        return self._runner.ready() if isinstance(self._runner, EndRuns) else nullcontext()

    # -- the corrupted runs

    def _record(self, fact: TracedFact, sigma: float, seed: int) -> CorruptedRuns:
        noise = drawn(self.model, fact, self.config.draws, seed, self.config.noise * sigma)
        runs = self._runner.record(fact.sequence, noise)
        if not bool(torch.isfinite(runs.scores.logs).all()):
            raise ModelError(
                f"The model's probabilities for {str(fact.prompt)!r} are no numbers (NaN or "
                "infinite): its weights are damaged, or its number format overflows. Try [model] "
                'dtype = "float32", or another base.'
            )
        return runs

    @torch.no_grad()
    def _unknown(self, fact: TracedFact) -> FactTrace | None:
        """Return the trace of a fact that the model does not answer, by one clean pass; None for
        one that it does."""
        sequence = fact.sequence
        ids = torch.tensor([sequence.ids], device=self.model.device)
        logits = logits_of(self.model.model, {"input_ids": ids})[:, list(sequence.positions)]
        scores = scores_of(logits, sequence.targets)
        if scores.leading[0].tolist() == list(sequence.targets):
            return None
        return self._described(fact, scores)

    def _described(self, fact: TracedFact, scores: AnswerScores) -> FactTrace:
        """Return the trace of a fact before anything is restored, from the scores of the clean run
        and the corrupted ones, if any."""
        leading = scores.leading[0].tolist()
        tokenizer = self.edited.tokenizer
        found = FactTrace(
            prompt=prompt_json(fact.prompt),
            subject=fact.subject,
            answer=fact.answer,
            said=texts_of(tokenizer, _up_to_a_miss(leading, fact.sequence.targets)).strip(),
            tokens=fact.token_texts,
            subject_places=fact.sequence.subject,
            mention=fact.mention,
            answer_tokens=tuple(texts_of(tokenizer, [t]) for t in fact.sequence.targets),
            is_known=leading == list(fact.sequence.targets),
            outcome=TRACED,
            clean=score_of(scores.logs[:1]),
            corrupted=score_of(scores.logs[1:]) if len(scores.logs) > 1 else None,
        )
        if not found.is_known:
            return replace(found, outcome=UNKNOWN)
        is_weak = found.total_effect < self.config.total_effect_min
        return replace(found, outcome=WEAK) if is_weak else found

    def _second(self, fact: TracedFact, sigma: float, found: FactTrace) -> SecondSeed:
        """Score the peak of each kind with the noise of another seed."""
        runs = self._record(fact, sigma, self.config.seed + 1)
        peaks = {}
        for trace_map in found.maps:
            token, block = trace_map.peak()
            logs = self._one(runs, trace_map.kind, token, block)
            peaks[trace_map.kind] = score_of(logs).probability
        return SecondSeed(score_of(runs.scores.logs[1:]), peaks)

    # -- restoring

    def _map(self, fact: TracedFact, runs: CorruptedRuns, kind: str) -> TraceMap:
        """Restore a kind at every token and block at which it can make a difference."""
        cell = score_of(runs.scores.logs[1:])
        columns = {block: place for place, block in enumerate(self.blocks)}
        grid = [[cell] * len(self.blocks) for _ in range(fact.size)]
        cases = [(t,) for t in range(min(fact.sequence.subject), fact.size)]
        scored = (
            self._windows(runs, kind, cases) if kind in MODULES else self._states(runs, kind, cases)
        )
        for block, (token,), logs in scored:
            grid[token][columns[block]] = score_of(logs)
        window = self.window if kind in MODULES else 1
        return TraceMap(
            kind,
            window,
            self.blocks,
            tuple(tuple(cell.probability for cell in row) for row in grid),
            tuple(tuple(cell.log_probability for cell in row) for row in grid),
        )

    def _states(
        self, runs: CorruptedRuns, kind: str, cases: Sequence[Case]
    ) -> Iterator[tuple[int, Case, Tensor]]:
        """Yield the block, the case and its log-probabilities [S, A] of restored states."""
        held = {name: module for module, name in WITHOUT.items()}.get(kind)
        last = self.model.block_count - 1
        for block in self.blocks[:-1]:
            for chunk in self._chunks(runs, cases):
                logs = self._runner.states(runs, chunk, block, held)
                yield from ((block, case, logs[i]) for i, case in enumerate(chunk))
        yield last, cases[-1], _clean_at_first(runs)

    def _windows(
        self, runs: CorruptedRuns, kind: str, cases: Sequence[Case]
    ) -> Iterator[tuple[int, Case, Tensor]]:
        """Yield the block, the case and its log-probabilities [S, A] of windows around blocks."""
        count = self.model.block_count
        for first, stops in windows_by_start(self.blocks, self.window, count).items():
            for chunk in self._chunks(runs, cases if first < count - 1 else cases[-1:]):
                by_stop = self._runner.windows(runs, chunk, kind, first, stops)
                for block in self.blocks:
                    start, stop = window_around(block, self.window, count)
                    if start == first:
                        yield from ((block, c, by_stop[stop][i]) for i, c in enumerate(chunk))

    def _one(self, runs: CorruptedRuns, kind: str, token: int, block: int) -> Tensor:
        """Return the log-probabilities [S, A] with a kind restored at one place."""
        if kind not in MODULES:
            held = {name: module for module, name in WITHOUT.items()}.get(kind)
            return self._runner.states(runs, [(token,)], block, held)[0]
        first, stop = window_around(block, self.window, self.model.block_count)
        return self._runner.windows(runs, [(token,)], kind, first, [stop])[stop][0]

    def _chunks(self, runs: CorruptedRuns, cases: Sequence[Case]) -> list[list[Case]]:
        """Divide cases into passes."""
        length = len(runs.sequence.ids)
        is_whole = not isinstance(self._runner, EndRuns)
        rows_max = ROWS_MAX if self.model.device.type == "cpu" else ACCELERATED_ROWS_MAX
        if is_whole:
            rows_max = min(rows_max, max(1, LOGITS_MAX // len(self.model.embeddings)))
        return chunked(cases, runs.draws, length, rows_max, whole=is_whole)


def score_of(logs: Tensor) -> TraceScore:
    """Return the score of an answer from its log-probabilities [S, A], means over the draws in
    float64."""
    first = float(logs[:, 0].double().exp().mean())
    return TraceScore(first, float(logs.double().mean(1).mean())).rounded()


def _clean_at_first(runs: CorruptedRuns) -> Tensor:
    """Return the log-probabilities [S, A] with the last block's state restored at the prompt's last
    token, which predicts the answer's first: no other token sees it."""
    logs = runs.scores.logs[1:].clone()
    logs[:, 0] = runs.scores.logs[0, 0]
    return logs


def _up_to_a_miss(leading: Sequence[int], targets: Sequence[int]) -> list[int]:
    """Return the leading tokens up to the first that is not the answer's: those behind it were
    predicted from the answer, and not from what the model said."""
    misses = (i for i, (a, b) in enumerate(zip(leading, targets, strict=True)) if a != b)
    return list(leading[: next(misses, len(leading)) + 1])


def _require_causal(task: Task) -> None:
    """Raise NotTraceable for another task than the causal one."""
    if task.name != "causal":
        raise NotTraceable(
            f"Causal traces are of models that go on with a text (the causal task), and this store "
            f"is of the {task.name} task. There every token of the input is read before the answer "
            "is given, in an encoder or as a whole, so that a restored state has no tokens behind "
            "it to which its effect could be followed. Trace a decoder's store."
        )


def _tracer(edited: EditedModel, task: Task, config: TracingConfig, in_parts: bool) -> Tracer:
    return Tracer(edited, task, config, in_parts=in_parts)
