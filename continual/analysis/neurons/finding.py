"""Finds the knowledge neurons of facts: attributes each prompt's answer, keeps those shared.

A fact has prompts and one answer. If several answers are offered, as by a correction with an old
and a new target, the first is taken that the model gives: the attribution of an answer that it does
not give says nothing about what it knows. Leaves reading facts and showing results to its callers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from continual.analysis.neurons.attribution import STEPS, attribute
from continual.analysis.neurons.choosing import (
    FfnNeuron,
    NeuronThresholds,
    neurons_above,
    of_relation,
    shared_by,
)
from continual.analysis.neurons.gold import GoldToken, MaskedPrompts, gold_tokens, require_tokens
from continual.analysis.neurons.operations import (
    AMPLIFIED,
    SUPPRESSED,
    in_weights,
    probability,
    scaled_values,
)
from continual.analysis.neurons.passes import PassMaker
from continual.errors import CeditError
from continual.model import EditedModel
from continual.prompts import Prompt
from continual.requests import Request
from continual.tasks import Task

ANSWER_TOKENS_MAX = 8  # of an answer that nobody gave


@dataclass(frozen=True)
class PromptedFact:
    """A fact as a model is asked for it."""

    prompts: tuple[Prompt, ...]
    answers: tuple[str, ...] = ()  # the model's own, if empty
    subject: str | None = None
    relation: str | None = None

    @classmethod
    def of(cls, request: Request) -> PromptedFact:
        """Take the prompts of a request, rephrases included, and both of its targets."""
        prompts = (*request.asked, *request.rephrases, *request.held_out_rephrases)
        answers = tuple(filter(None, (request.target_new, request.target_old)))
        return cls(prompts, answers, request.subject, request.relation)


@dataclass(frozen=True)
class PromptNeurons:
    """One prompt's neurons, and the model's opinion of its answer."""

    prompt: Prompt
    answer: tuple[GoldToken, ...]
    neurons: tuple[FfnNeuron, ...]  # the highest score first
    scores: tuple[float, ...]
    by_activation: tuple[FfnNeuron, ...]  # the same, where the score is the activation
    probability: float
    is_right: bool
    said: str  # by the model, if the answer is wrong


@dataclass(frozen=True)
class FactNeurons:
    """A fact's neurons: those that enough of its prompts share."""

    fact: PromptedFact
    answer: str
    prompts: tuple[PromptNeurons, ...]
    neurons: tuple[FfnNeuron, ...] = ()
    by_activation: tuple[FfnNeuron, ...] = ()
    share: float = 1.0  # of the prompts that a neuron is in

    @property
    def is_right(self) -> bool:
        """True if the model gives the answer to every prompt."""
        return all(prompt.is_right for prompt in self.prompts)

    @property
    def probability(self) -> float:
        """The mean of P(answer) over the prompts."""
        return sum(prompt.probability for prompt in self.prompts) / len(self.prompts)

    def score(self, neuron: FfnNeuron) -> float:
        """Return a neuron's mean score over the prompts that have it."""
        scores = [
            score
            for prompt in self.prompts
            for found, score in zip(prompt.neurons, prompt.scores, strict=True)
            if found == neuron
        ]
        return sum(scores) / len(scores) if scores else 0.0


@dataclass(frozen=True)
class NeuronEffects:
    """P(answer), the mean over a fact's prompts, with its neurons suppressed and amplified."""

    probability: float
    suppressed: float  # at the place of the answer
    amplified: float
    suppressed_in_weights: float
    amplified_in_weights: float


class NeuronFinder:
    """Finds knowledge neurons of a model as it stands, within its `with` block."""

    def __init__(
        self,
        edited: EditedModel,
        language: Task | MaskedPrompts,
        *,
        steps: int = STEPS,
        thresholds: NeuronThresholds | None = None,
    ) -> None:
        """Take a model and its task, or the prompts of a masked model. Raises ModelError for a
        model without FFNs, and for a classifier."""
        if not isinstance(language, MaskedPrompts):
            require_tokens(language)
        self.edited, self.language, self.steps = edited, language, steps
        self.thresholds = thresholds or NeuronThresholds()
        has_gates = bool(edited.open_gates)
        self.passes = PassMaker(edited.model, edited.anatomy, has_gates=has_gates)

    def gold_tokens(self, prompt: Prompt, answer: str) -> tuple[GoldToken, ...]:
        """Return the tokens of an answer. Raises RequestError."""
        if isinstance(self.language, MaskedPrompts):
            return self.language.gold_tokens(str(prompt), answer)
        return gold_tokens(self.language, prompt, answer)

    def find(
        self, facts: Sequence[PromptedFact], heard: Callable[[int], None] = lambda _: None
    ) -> list[FactNeurons]:
        """Return the neurons of facts, with the share of prompts moved for each relation; `heard`
        is told the number of each finished fact. Raises RequestError for a prompt or an answer that
        the model cannot be given."""
        looked = []
        for number, fact in enumerate(facts, start=1):
            looked.append(self.look_at(fact))
            heard(number)
        return shared(looked, self.thresholds)

    def look_at(self, fact: PromptedFact) -> FactNeurons:
        """Attribute the answer to each of a fact's prompts; nothing is shared yet."""
        answer = self._answer(fact)
        return FactNeurons(fact, answer, tuple(self._prompt(p, answer) for p in fact.prompts))

    def _prompt(self, prompt: Prompt, answer: str) -> PromptNeurons:
        tokens = self.gold_tokens(prompt, answer)
        found = attribute(self.passes, tokens, self.steps)
        neurons = neurons_above(found.scores, self.thresholds.of_max)
        return PromptNeurons(
            prompt,
            tokens,
            tuple(neurons),
            tuple(float(found.scores[n.block, n.place]) for n in neurons),
            tuple(neurons_above(found.activations, self.thresholds.activation_of_max)),
            found.probability,
            found.is_right,
            answer if found.is_right else self._own_answer(prompt),
        )

    def _answer(self, fact: PromptedFact) -> str:
        """Return the answer to attribute: the first that the model gives to the first prompt, or
        the first of all. Raises CeditError if there is none."""
        if not fact.answers:
            if answer := self._own_answer(fact.prompts[0]):
                return answer
            raise CeditError(
                f"The model gives no answer to {str(fact.prompts[0])!r}: say one with --answer."
            )
        if len(fact.answers) > 1:
            for answer in fact.answers:
                tokens = self.gold_tokens(fact.prompts[0], answer)
                if all(self.passes.read(token).is_right for token in tokens):
                    return answer
        return fact.answers[0]

    def _own_answer(self, prompt: Prompt) -> str:
        """Return the model's own answer, or its first token if the answer has no end; it may
        be empty."""
        language, model = self.language, self.edited.model
        if isinstance(language, MaskedPrompts):
            (gold,) = language.gold_tokens(str(prompt), language.any_token)
            answer = language.text([int(self.passes.read(gold).logits.argmax())])
        else:
            question = language.question(prompt)
            tokens = language.answer(model, question, ANSWER_TOKENS_MAX)
            answer = language.text(tokens)
            if len(tokens) == ANSWER_TOKENS_MAX and language.text(tokens[:-1]) != answer:
                answer = language.text(tokens[:1])
        return answer.strip()

    def probability(self, found: FactNeurons) -> float:
        """Return the mean of P(answer) over a fact's prompts, by the model as it stands now."""
        return self._mean(found)

    def effects(self, found: FactNeurons) -> NeuronEffects:
        """Measure P(answer) with a fact's neurons suppressed and amplified."""
        at_place = [
            self._mean(found, found.neurons, factor) for factor in (1.0, SUPPRESSED, AMPLIFIED)
        ]
        in_all = []
        for factor in (SUPPRESSED, AMPLIFIED):
            patch = scaled_values(self.edited, found.neurons, factor)
            with in_weights(self.edited, [patch] if found.neurons else []):
                in_all.append(self._mean(found))
        return NeuronEffects(*at_place, *in_all)

    def _mean(
        self, found: FactNeurons, neurons: Sequence[FfnNeuron] = (), factor: float = 1.0
    ) -> float:
        shares = [probability(self.passes, p.answer, neurons, factor) for p in found.prompts]
        return sum(shares) / len(shares)


def shared(facts: Sequence[FactNeurons], thresholds: NeuronThresholds) -> list[FactNeurons]:
    """Return facts with the neurons that their prompts share.

    The share is moved for the facts of one relation that have enough prompts; the others, and facts
    without a relation, have the neurons of `thresholds.share` of their prompts.
    """
    result = list(facts)
    for places in _by_relation(facts, thresholds.prompts_min).values():
        of_scores = of_relation([[p.neurons for p in facts[i].prompts] for i in places], thresholds)
        by_activation = of_relation(
            [[p.by_activation for p in facts[i].prompts] for i in places], thresholds
        )
        for i, neurons, active in zip(places, of_scores.facts, by_activation.facts, strict=True):
            result[i] = replace(
                facts[i], neurons=neurons, by_activation=active, share=of_scores.share
            )
    for i, fact in enumerate(result):
        if fact is facts[i]:
            result[i] = replace(
                fact,
                neurons=shared_by([p.neurons for p in fact.prompts], thresholds.share),
                by_activation=shared_by([p.by_activation for p in fact.prompts], thresholds.share),
                share=thresholds.share,
            )
    return result


def _by_relation(facts: Sequence[FactNeurons], prompts_min: int) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, found in enumerate(facts):
        if found.fact.relation is not None and len(found.prompts) >= prompts_min:
            groups.setdefault(found.fact.relation, []).append(i)
    return groups


def neurons_json(found: FactNeurons) -> list[dict[str, Any]]:
    """Return a fact's neurons as JSON, the highest score first."""
    neurons = sorted(found.neurons, key=lambda n: -found.score(n))
    return [{"block": n.block, "index": n.place, "score": found.score(n)} for n in neurons]
