"""A relation's neurons, and the change of its answers with and without them.

Sums up the facts of one relation; leaves finding a fact's neurons to `finding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from continual.analysis.neurons.choosing import FfnNeuron, most_frequent
from continual.analysis.neurons.finding import FactNeurons, NeuronEffects

ERASED_MAX = 20
"""Neurons of a relation that are erased, as published (Dai et al. 2022, section 5)."""


@dataclass(frozen=True)
class RelationNeurons:
    """The neurons that many facts of a relation have, and their effect on these facts."""

    relation: str
    facts: int
    neurons: tuple[FfnNeuron, ...]
    suppressed: float | None  # the change of P(answer) relative to it; None where P is 0
    amplified: float | None


def relations_of(
    found: Sequence[FactNeurons], effects: Sequence[NeuronEffects], share: float
) -> list[RelationNeurons]:
    """Return the neurons of each relation, by its name: those in at least this share of its facts.

    `effects` are the facts' own. Facts without a relation are left out.
    """
    names = sorted({one.fact.relation for one in found if one.fact.relation is not None})
    return [_relation(name, found, effects, share) for name in names]


def _relation(
    name: str, found: Sequence[FactNeurons], effects: Sequence[NeuronEffects], share: float
) -> RelationNeurons:
    pairs = [
        (one, effect)
        for one, effect in zip(found, effects, strict=True)
        if one.fact.relation == name
    ]
    before = sum(effect.probability for _, effect in pairs)

    def change(after: float) -> float | None:
        return after / before - 1 if before else None

    return RelationNeurons(
        name,
        len(pairs),
        tuple(most_frequent([one.neurons for one, _ in pairs], share)),
        change(sum(effect.suppressed for _, effect in pairs)),
        change(sum(effect.amplified for _, effect in pairs)),
    )


def to_erase(known: Sequence[FactNeurons]) -> list[FfnNeuron]:
    """Return the neurons that most of a relation's facts have, `ERASED_MAX` of them."""
    return list(most_frequent([fact.neurons for fact in known], count=ERASED_MAX))
