"""Restores by running only what can differ: the blocks above, and the tokens from there on.

In a causal model a state restored at (t, l) changes nothing in blocks up to l and nothing at tokens
before t. So the corrupted runs are recorded once, with the keys and values of attention, and the
restored ones begin in block l + 1 with the tokens from t on, those of all cases and draws in one
row; attention gives each case the recorded keys and values of the tokens before. Where a module's
output is restored from a block on, only the restored tokens of that block can differ. Only the
answer's positions are projected to the vocabulary.

It stands in for the model's attention, as `passes.suffix` does; `runs_in_parts` tells the models
that take it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from continual import hooks
from continual.analysis.tracing.cases import Case, CaseRows
from continual.analysis.tracing.modules import STATE, RestorableModel
from continual.analysis.tracing.runs import (
    LOGITS_MAX,
    AnsweredSequence,
    AnswerScores,
    CorruptedRuns,
    Override,
    Runner,
    WholePasses,
    scores_of,
)
from continual.anatomy import sample_inputs
from continual.errors import ModelError
from continual.passes.partial import BlockCall, logits_of
from continual.passes.suffix import UNKNOWN, keeps_prefixes

SAMPLE_TOKENS, SAMPLE_DRAWS = 6, 2
TOLERANCE = 1e-3  # of log-probabilities: a wrong way of running is off by far more


@dataclass(frozen=True)
class KeyValues:
    """The keys and values of a block's attention in the corrupted runs, [S · N, heads, d_head]."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class RecordedEnds(CorruptedRuns):
    """Recorded runs with the keys and values of every block."""

    kept: Mapping[int, KeyValues]


@dataclass(frozen=True)
class EndLayout:
    """The rows of some cases, and the arguments of the blocks for them."""

    rows: CaseRows
    calls: tuple[BlockCall, ...]


class EndRuns(Runner):
    """Runs the ends of corrupted sequences. Used within `ready`."""

    way: ClassVar[str] = "in parts"

    def __init__(self, model: RestorableModel) -> None:
        super().__init__(model)
        self._blocks = {
            id(module): index
            for index, block in enumerate(model.modules[STATE])
            for module in block.modules()
        }
        self._form: BlockCall | None = None  # of a block's output
        self._layouts: dict[tuple[bool, tuple[Case, ...]], EndLayout] = {}
        self._attend: Callable[[hooks.AttentionCall], Tensor] = self._attend_whole
        self._kept: dict[int, KeyValues] = {}

    # -- the corrupted runs

    @torch.no_grad()
    def record(self, sequence: AnsweredSequence, noise: Tensor) -> RecordedEnds:
        """See `Runner.record`."""
        self._kept, self._layouts = {}, {}
        modules = {
            (kind, block): module
            for kind, blocks in self.model.modules.items()
            for block, module in enumerate(blocks)
        }
        calls: dict[tuple[str, int], hooks.Call] = {}
        noisy = self._noisy(torch.cat([torch.zeros_like(noise[:1]), noise]), sequence.subject)
        ids = torch.tensor([sequence.ids], device=self.model.device).expand(1 + len(noise), -1)
        with (
            self._attending(self._attend_whole),
            hooks.altered(self.model.embedding, noisy),
            hooks.watched(modules, calls.__setitem__),
            hooks.cut_short(self.model.modules[STATE][-1]),
        ):
            hooks.run_until_cut(lambda: self.model.model(input_ids=ids, use_cache=False))
        size = (*ids.shape, -1)
        outputs = {
            kind: [calls[kind, block].hidden.reshape(size) for block in range(len(blocks))]
            for kind, blocks in self.model.modules.items()
        }
        self._form = BlockCall.of(calls[STATE, 0])
        last = outputs[STATE][-1][:, list(sequence.positions)]
        scores = self._projected(last.flatten(0, 1), sequence, len(ids))
        entering = calls[STATE, 0].input.reshape(size)
        return RecordedEnds(sequence, noise, entering, outputs, scores, self._kept)

    def _attend_whole(self, asked: hooks.AttentionCall) -> Tensor:
        """Attend in whole runs, and keep the keys and values of the corrupted ones."""
        keys, values = (states[1:].transpose(1, 2) for states in (asked.key, asked.value))
        self._kept[self._blocks[id(asked.module)]] = KeyValues(
            keys.flatten(0, 1), values.flatten(0, 1)
        )
        return attention(asked, asked.query, asked.key, asked.value)

    # -- restored runs

    @torch.no_grad()
    def states(
        self, runs: CorruptedRuns, cases: Sequence[Case], block: int, held: str | None = None
    ) -> Tensor:
        """See `Runner.states`."""
        layout = self._layout(runs, cases)
        rows = layout.rows
        before = runs.entering if block < 0 else runs.outputs[STATE][block]
        hidden = before[1:].flatten(0, 1)[rows.sources]
        hidden[rows.restored] = runs.clean(STATE, block, rows)
        for upper in range(block + 1, self.model.block_count):
            override = None
            if held is not None:
                override = self._override(held, upper, rows, runs.corrupted(held, upper, rows))
            hidden = self._through(runs, upper, hidden, layout, override)
        return self._finished(runs, hidden, rows)

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
        layout = self._layout(runs, cases)
        rows = layout.rows
        hidden = runs.outputs[STATE][first][1:].flatten(0, 1)[rows.sources]
        hidden[rows.restored] = self._first_restored(runs, cases, kind, first)
        found: dict[int, Tensor] = {}
        for block in range(first + 1, stops[-1] + 1):
            if block in stops:
                end = hidden
                for upper in range(block, self.model.block_count):
                    end = self._through(runs, upper, end, layout)
                found[block] = self._finished(runs, end, rows)
            if block < stops[-1]:
                override = self._override(kind, block, rows, runs.clean(kind, block, rows))
                hidden = self._through(runs, block, hidden, layout, override)
        return found

    def _first_restored(
        self, runs: CorruptedRuns, cases: Sequence[Case], kind: str, block: int
    ) -> Tensor:
        """Return the outputs [K, d] of the first block of a window, at restored tokens; all others
        of that block are as they were."""
        layout = self._layout(runs, cases, is_restored_alone=True)
        rows = layout.rows
        before = runs.entering if block == 0 else runs.outputs[STATE][block - 1]
        hidden = before[1:].flatten(0, 1)[rows.sources]
        override = self._override(kind, block, rows, runs.clean(kind, block, rows))
        return self._through(runs, block, hidden, layout, override)

    def _override(self, kind: str, block: int, rows: CaseRows, values: Tensor) -> Override:
        return Override(self.model.modules[kind][block], rows.restored, values)

    def _through(
        self,
        runs: CorruptedRuns,
        block: int,
        hidden: Tensor,
        layout: EndLayout,
        override: Override | None = None,
    ) -> Tensor:
        """Return the states [R, d] of the rows behind a block, from the states before it."""
        assert isinstance(runs, RecordedEnds)
        kept, rows = runs.kept[block], layout.rows
        module = self.model.modules[STATE][block]
        with (
            self._attending(lambda asked: attend_ends(asked, rows, kept)),
            self._answers_alone(runs, block, rows),
            nullcontext() if override is None else hooks.altered(override.module, override),
        ):
            return layout.calls[block].replay(module, hidden[None]).reshape(hidden.shape)

    @contextmanager
    def _answers_alone(self, runs: CorruptedRuns, block: int, rows: CaseRows) -> Iterator[None]:
        """Run the last block's FFN for the answer's positions alone, within `with`."""
        anatomy, model = self.model.anatomy, self.model.model
        if block < anatomy.last or not anatomy.is_rowwise or anatomy.down is None:
            yield
            return
        answers = rows.at(runs.sequence.positions)
        if not len(answers):
            yield
            return
        entries = anatomy.up_modules(model, block)
        with hooks.narrowed(entries, anatomy.down_module(model, block), answers):
            yield

    def _finished(self, runs: CorruptedRuns, hidden: Tensor, rows: CaseRows) -> Tensor:
        """Return log-probabilities [cases, S, A] from states [R, d] behind the last block."""
        count = len(rows.cases) * runs.draws
        answers = hidden[rows.at(runs.sequence.positions)]
        return self._projected(answers, runs.sequence, count).logs.view(
            len(rows.cases), runs.draws, -1
        )

    def _projected(self, states: Tensor, sequence: AnsweredSequence, count: int) -> AnswerScores:
        """Return the scores [count, A] of states [count · A, d] behind the last block, by the
        model's own forward without its blocks."""
        answer_count = len(sequence.positions)
        vocabulary = len(self.model.embeddings)
        runs = max(1, LOGITS_MAX // (vocabulary * answer_count))
        parts = [
            scores_of(logits.view(-1, answer_count, logits.shape[-1]), sequence.targets)
            for part in states.split(runs * answer_count)
            for logits in [self._logits(part)]
        ]
        logs, leading = zip(*((part.logs, part.leading) for part in parts), strict=True)
        return AnswerScores(torch.cat(logs), torch.cat(leading))

    def _logits(self, states: Tensor) -> Tensor:
        """Return the logits [n, vocab] of states [n, d] behind the last block."""
        assert self._form is not None
        output = self._form.output(states[None])
        zeros = torch.zeros(1, len(states), dtype=torch.long, device=self.model.device)
        with ExitStack() as stack:
            for block in self.model.modules[STATE]:
                stack.enter_context(hooks.bypassed(block, lambda *_, **__: output))
            logits = logits_of(self.model.model, {"input_ids": zeros, "position_ids": zeros})
        return logits[0]

    # -- the blocks' calls

    def _layout(
        self, runs: CorruptedRuns, cases: Sequence[Case], *, is_restored_alone: bool = False
    ) -> EndLayout:
        """Return the rows of these cases with the blocks' arguments, kept for the same sequence."""
        key = is_restored_alone, tuple(cases)
        if key not in self._layouts:
            make = CaseRows.restored_alone if is_restored_alone else CaseRows.ends
            rows = make(cases, runs.draws, len(runs.sequence.ids), self.model.device)
            self._layouts[key] = EndLayout(rows, self._called(runs, rows))
        return self._layouts[key]

    def _called(self, runs: CorruptedRuns, rows: CaseRows) -> tuple[BlockCall, ...]:
        """Return the arguments of the blocks for these rows; no block is run."""
        assert self._form is not None
        form, calls = self._form, dict[int, BlockCall]()
        modules = dict(enumerate(self.model.modules[STATE]))

        def pass_on(*args: Any, **kwargs: Any) -> Any:
            values = (*args, *kwargs.values())
            return form.output(next(value for value in values if isinstance(value, Tensor)))

        ids = torch.tensor(runs.sequence.ids, device=self.model.device)[rows.position]
        with (
            ExitStack() as stack,
            self._attending(self._attend_whole),
            hooks.watched(
                modules, lambda block, call: calls.__setitem__(block, BlockCall.of(call))
            ),
            hooks.cut_short(modules[len(modules) - 1]),
        ):
            for module in modules.values():
                stack.enter_context(hooks.bypassed(module, pass_on))
            hooks.run_until_cut(
                lambda: self.model.model(
                    input_ids=ids[None], position_ids=rows.position[None], use_cache=False
                )
            )
        return tuple(calls[block] for block in sorted(calls))

    # -- attention

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Stand in for the model's attention within `with`."""
        with hooks.attending(self.model.model, lambda asked: self._attend(asked)):
            yield

    @contextmanager
    def _attending(self, attend: Callable[[hooks.AttentionCall], Tensor]) -> Iterator[None]:
        before, self._attend = self._attend, attend
        try:
            yield
        finally:
            self._attend = before


def attend_ends(asked: hooks.AttentionCall, rows: CaseRows, kept: KeyValues) -> Tensor:
    """Return the output [1, R, heads, d] of attention for the rows of cases: each row looks at the
    tokens before it, recorded ones where its case has no row."""
    count = len(rows.cases) * rows.draws
    query, key, value = (
        states.squeeze(0).transpose(0, 1) for states in (asked.query, asked.key, asked.value)
    )
    keys, values = (
        recorded.repeat(len(rows.cases), 1, 1).index_copy_(0, rows.slots, own)
        for recorded, own in ((kept.keys, key), (kept.values, value))
    )
    queries = query.new_zeros(count * rows.length, *query.shape[1:])
    queries.index_copy_(0, rows.slots, query)
    side_by_side = (
        states.view(count, rows.length, *states.shape[1:]).transpose(1, 2)
        for states in (queries, keys, values)
    )
    found = attention(asked, *side_by_side)
    return found.flatten(0, 1)[rows.slots][None]


def attention(asked: hooks.AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the output [B, N, heads, d] of causal attention for queries [B, heads, N, d] and keys
    and values [B, heads or fewer, N, d]. Raises ModelError for arguments that are not supported."""
    names = [name for name in UNKNOWN if asked.told.get(name) is not None]
    if names or asked.told.get("dropout"):
        raise ModelError(f"Its attention is told of {', '.join(names) or 'dropout'}.")
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (states.repeat_interleave(shared, 1) for states in (key, value))
    scale, window = asked.told.get("scaling"), asked.told.get("sliding_window")
    length = query.shape[2]
    mask = None
    if window is not None and window < length:
        distance = torch.arange(length)[:, None] - torch.arange(length)
        mask = ((distance >= 0) & (distance < window)).to(query.device)
    found = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return found.transpose(1, 2)


def runs_in_parts(model: RestorableModel) -> bool:
    """Tell whether a model's runs in parts give what whole passes give. Tried on a sample, with
    each kind restored."""
    if not keeps_prefixes(model.model, model.anatomy):
        return False
    ids = tuple(sample_inputs(model.model, SAMPLE_TOKENS)["input_ids"][0].tolist())
    sequence = AnsweredSequence(ids, (1, 2), (SAMPLE_TOKENS - 2, SAMPLE_TOKENS - 1), ids[:2])
    width = model.embeddings.shape[1]
    spread = float(model.embeddings.float().std())
    noise = spread * torch.randn(
        SAMPLE_DRAWS, 2, width, generator=torch.Generator().manual_seed(0)
    ).to(model.device)
    cases: list[Case] = [(1,), (2,), (SAMPLE_TOKENS - 2,)]
    ends, whole = EndRuns(model), WholePasses(model)
    try:
        with ends.ready():
            found = _sampled(ends, sequence, noise, cases)
    except (ModelError, TypeError, ValueError, AttributeError, RuntimeError, LookupError):
        return False
    expected = _sampled(whole, sequence, noise, cases)
    return bool((found - expected).abs().max() <= TOLERANCE)


def _sampled(
    runner: Runner, sequence: AnsweredSequence, noise: Tensor, cases: Sequence[Case]
) -> Tensor:
    """Return the log-probabilities of a sample with each kind restored in the first block."""
    runs = runner.record(sequence, noise)
    kinds = [kind for kind in runner.model.modules if kind != STATE]
    return torch.stack(
        [
            runner.states(runs, cases, 0),
            *(runner.states(runs, cases, 0, held=kind) for kind in kinds),
            *(runner.windows(runs, cases, kind, 0, [1])[1] for kind in kinds),
        ]
    )
