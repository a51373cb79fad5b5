"""Chooses knowledge neurons from scores: by a prompt's maximum, by sharing, by relation.

- a prompt's: all with a score of at least a share of the maximum over all blocks
- a fact's: those in enough of its prompts; the share is moved for a whole relation until the mean
  number of a fact's neurons lies within bounds
- a relation's: those in enough of its facts, the most frequent first

Knows scores [L, d_ff] and sets; nothing of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from torch import Tensor


class FfnNeuron(NamedTuple):
    """A neuron by its block and its place in the FFN's intermediate row."""

    block: int
    place: int

    def __str__(self) -> str:
        return f"{self.block}.{self.place}"


@dataclass(frozen=True)
class NeuronThresholds:
    """The published thresholds."""

    of_max: float = 0.2  # of a prompt's highest score, to be one of its neurons
    activation_of_max: float = 0.5  # the same where the score is the activation itself
    share: float = 0.7  # of a fact's prompts, to be one of its neurons
    share_step: float = 0.05
    share_moves: int = 6  # of the share for a relation, at most
    mean_min: float = 2.0  # neurons of a fact, the mean over a relation
    mean_max: float = 5.0
    prompts_min: int = 3  # of a fact whose neurons are shared
    relation_share: float = 0.1  # of a relation's facts, to be one of its neurons


@dataclass(frozen=True)
class SharedNeurons:
    """The neurons of a relation's facts, and the share of prompts that they are in."""

    facts: tuple[tuple[FfnNeuron, ...], ...]
    share: float

    @property
    def mean(self) -> float:
        """The mean number of a fact's neurons."""
        return sum(map(len, self.facts)) / len(self.facts) if self.facts else 0.0


def neurons_above(scores: Tensor, of_max: float) -> list[FfnNeuron]:
    """Return the neurons with at least this share of the highest score, the highest first; none if
    no score is above zero."""
    highest = float(scores.max())
    if highest <= 0:
        return []
    places = (scores >= of_max * highest).nonzero().tolist()
    neurons = [FfnNeuron(block, place) for block, place in places]
    return sorted(neurons, key=lambda n: (-float(scores[n.block, n.place]), n))


def shared_by(prompts: Sequence[Collection[FfnNeuron]], share: float) -> tuple[FfnNeuron, ...]:
    """Return the neurons that at least this share of a fact's prompts have, the most frequent
    first."""
    counts = Counter(neuron for neurons in prompts for neuron in set(neurons))
    needed = Fraction(str(share)) * len(prompts)
    return tuple(n for n, count in _by_count(counts) if count >= needed)


def of_relation(
    facts: Sequence[Sequence[Collection[FfnNeuron]]], thresholds: NeuronThresholds
) -> SharedNeurons:
    """Return the neurons of each fact of one relation, given those of its prompts.

    The share is moved by a step, up while facts have too many neurons, down while they have too
    few.
    """
    share, step = Fraction(str(thresholds.share)), Fraction(str(thresholds.share_step))
    for moves_left in range(thresholds.share_moves, -1, -1):
        shared = SharedNeurons(tuple(shared_by(f, float(share)) for f in facts), float(share))
        is_within = thresholds.mean_min <= shared.mean <= thresholds.mean_max
        if is_within or not moves_left:
            break
        share += step if shared.mean > thresholds.mean_max else -step
        share = min(Fraction(1), max(step, share))
    return shared


def most_frequent(
    facts: Sequence[Collection[FfnNeuron]], share: float = 0.0, count: int | None = None
) -> tuple[FfnNeuron, ...]:
    """Return the neurons that at least this share of a relation's facts have, the most frequent
    first; `count` of them at most."""
    counts = Counter(neuron for neurons in facts for neuron in set(neurons))
    needed = Fraction(str(share)) * len(facts)
    return tuple(n for n, found in _by_count(counts) if found >= needed)[:count]


def _by_count(counts: Counter[FfnNeuron]) -> list[tuple[FfnNeuron, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
