"""The choice of a token, against a plain computation of the same shares."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from continual.serving.sampling import Sampling, TokenChooser

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
DRAWS = 3000


def shares(
    sampling: Sampling, logits: list[float], read: list[int], said: list[int]
) -> list[float]:
    """The shares of the tokens: penalties, temperature, top k, top p, min p, one after another."""
    scores = [x + sampling.logit_bias.get(i, 0.0) for i, x in enumerate(logits)]
    for token, count in Counter(said).items():
        scores[token] -= sampling.presence_penalty + count * sampling.frequency_penalty
    for token in set(read):
        penalty = sampling.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    scores = [x / sampling.temperature for x in scores]
    if sampling.top_k:
        floor = sorted(scores, reverse=True)[sampling.top_k - 1]
        scores = [x if x >= floor else -math.inf for x in scores]
    weights = _softmax(scores)
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    kept, total = set[int](), 0.0
    for token in order:
        if total < sampling.top_p:
            kept.add(token)
        total += weights[token]
    weights = _softmax([x if i in kept else -math.inf for i, x in enumerate(scores)])
    floor = sampling.min_p * max(weights)
    weights = [w if w >= floor else 0.0 for w in weights]
    return [w / sum(weights) for w in weights]


def _softmax(scores: list[float]) -> list[float]:
    most = max(scores)
    weights = [math.exp(x - most) for x in scores]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 1.0, "repetition_penalty": 1.6},
        {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"temperature": 1.0, "logit_bias": {5: 5.0, 0: -2.0}},
    ],
)
def test_tokens_are_drawn_by_their_shares(settings: dict[str, Any]) -> None:
    sampling = Sampling(seed=7, **settings)
    read, said = [0, 4, 1, 1], [1, 1]
    chooser = TokenChooser(sampling)
    counts = Counter(chooser.choose(torch.tensor(read), LOGITS, said) for _ in range(DRAWS))
    for token, share in enumerate(shares(sampling, LOGITS.tolist(), read, said)):
        # Five standard deviations of a binomial count; a token without a share is never drawn.
        bound = 5 * math.sqrt(DRAWS * share * (1 - share))
        assert abs(counts[token] - DRAWS * share) <= bound, (token, share, counts)


def test_without_a_temperature_the_likeliest_token_is_taken() -> None:
    chooser = TokenChooser(Sampling())
    assert chooser.choose(torch.tensor([0]), LOGITS, []) == 0
    biased = TokenChooser(Sampling(logit_bias={3: 10.0, 999: 50.0}))
    assert biased.choose(torch.tensor([0]), LOGITS, []) == 3


def test_a_seed_gives_the_same_answer_and_each_of_several_another() -> None:
    def drawn(index: int, seed: int | None) -> list[int]:
        chooser = TokenChooser(Sampling(temperature=1.0, seed=seed), index)
        return [chooser.choose(torch.tensor([0]), LOGITS, []) for _ in range(40)]

    assert drawn(0, 3) == drawn(0, 3)
    assert drawn(0, 3) != drawn(1, 3)
    assert drawn(0, None) != drawn(0, None)


def test_the_models_own_settings_are_the_defaults() -> None:
    def of(**config: Any) -> Sampling:
        names = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        given = SimpleNamespace(**{**dict.fromkeys(names), **config})
        return Sampling.of_model(SimpleNamespace(generation_config=given))

    assert of() == Sampling()
    assert of(repetition_penalty=1.1) == Sampling(repetition_penalty=1.1)
    assert of(temperature=0.7, top_k=20) == Sampling()  # not sampled
    assert of(do_sample=True) == Sampling(temperature=1.0)
    sampled = of(do_sample=True, temperature=0.6, top_p=0.9, top_k=20)
    assert sampled == Sampling(temperature=0.6, top_p=0.9, top_k=20)
    assert sampled.changed(temperature=0.0, seed=None) == Sampling(0.0, 0.9, 20)
