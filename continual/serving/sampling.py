"""The choice of the next token: its settings, with the model's own as defaults, and the drawing.

Every answer has its own generator, so that a seed gives the same answer whatever else is asked at
the time.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

SEED_BITS = 63


@dataclass(frozen=True)
class Sampling:
    """The settings of a choice. With a temperature of 0 the likeliest token is taken."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0  # taken off the logit of a token that the answer has
    frequency_penalty: float = 0.0  # taken off for each time that the answer has it
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added, by token
    seed: int | None = None  # None: another answer each time

    @classmethod
    def of_model(cls, model: Any) -> Self:
        """Return the settings in the model's directory; a model without any is asked greedily."""
        config = model.generation_config
        is_sampled = bool(config.do_sample)
        named = {
            "temperature": (1.0 if config.temperature is None else config.temperature)
            if is_sampled
            else 0.0,
            "repetition_penalty": config.repetition_penalty,
        }
        if is_sampled:
            named |= {name: getattr(config, name, None) for name in ("top_p", "top_k", "min_p")}
        return cls(**{name: value for name, value in named.items() if value is not None})

    def changed(self, **asked: Any) -> Self:
        """Return the settings with those that a caller asks for; None asks for nothing."""
        return replace(self, **{name: value for name, value in asked.items() if value is not None})

    def warpers(self) -> LogitsProcessorList:
        """Return transformers' processors for these settings, in its own order."""
        warpers: list[LogitsProcessor] = []
        if self.repetition_penalty != 1.0:
            warpers.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.temperature > 0:
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
            if self.top_k > 0:
                warpers.append(TopKLogitsWarper(self.top_k))
            if self.top_p < 1.0:
                warpers.append(TopPLogitsWarper(float(self.top_p)))
            if self.min_p > 0.0:
                warpers.append(MinPLogitsWarper(float(self.min_p)))
        return LogitsProcessorList(warpers)


class TokenChooser:
    """Chooses the tokens of one answer."""

    def __init__(self, sampling: Sampling, index: int = 0) -> None:
        """`index` is the answer's place among several to one question: each has another seed."""
        self._sampling = sampling
        self._warpers = sampling.warpers()
        self._generator = torch.Generator()
        seed = sampling.seed
        drawn = secrets.randbits(SEED_BITS) if seed is None else (seed + index) % 2**SEED_BITS
        self._generator.manual_seed(drawn)

    def choose(self, ids: Tensor, logits: Tensor, answer: Sequence[int]) -> int:
        """Return the next token, given all tokens [L], the logits [v] and the answer so far."""
        scores = self._penalised(logits.float(), answer)[None]
        if len(self._warpers):
            scores = self._warpers(ids[ids < len(logits)][None], scores)  # pictures are no words
        if self._sampling.temperature <= 0:
            return int(scores[0].argmax())
        shares = scores[0].softmax(-1).cpu()
        return int(torch.multinomial(shares, 1, generator=self._generator))

    def _penalised(self, logits: Tensor, answer: Sequence[int]) -> Tensor:
        settings = self._sampling
        changes = dict(settings.logit_bias)
        if settings.presence_penalty or settings.frequency_penalty:
            for token, count in Counter(answer).items():
                penalty = settings.presence_penalty + count * settings.frequency_penalty
                changes[token] = changes.get(token, 0.0) - penalty
        if not changes:
            return logits
        changed = logits.clone()
        for token, change in changes.items():
            if 0 <= token < len(changed):
                changed[token] += change
        return changed
