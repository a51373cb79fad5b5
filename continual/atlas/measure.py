"""Measures the atlas: its knowledge, its reading of the context, and the places to edit it.

- ``Sampler`` draws the probes: trained and held-out phrasings, new facts given in context
- ``accuracy`` is the share of probes that greedy decoding answers exactly, terminator included
- ``mediation`` is the share of facts that one hidden state at the subject's last token can replace

Leaves to the benchmark the bars that these have to pass, and showing them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from continual import hooks
from continual.atlas.corpus import in_context, subject_span
from continual.atlas.facts import Fact, by_relation, by_subject, objects_of
from continual.passes.partial import logits_of
from continual.requests import Probe
from continual.task_model import TaskModel, length_sorted
from continual.tasks import Encoding

DISTRACTORS = ("same_relation", "same_subject", "any")
BATCH_TOKENS_MAX = 2048

DrawnItem = TypeVar("DrawnItem")


@dataclass(frozen=True)
class Accuracy:
    """The share of probes that are right, over all and for each of the probes' names."""

    share: float
    by_name: Mapping[str, float]
    count: int


@dataclass(frozen=True)
class FactReplacement:
    """A fact that is to be given another object, through its subject's last token."""

    prompt: str
    subject: str
    target: str


@dataclass(frozen=True)
class Mediation:
    """The influence of one block's output on the answers about a subject."""

    block: int
    steps: tuple[int | None, ...]  # by fact: gradient steps until it was right; None for never

    @property
    def share(self) -> float:
        """The share of facts that were replaced."""
        return fmean(count is not None for count in self.steps)

    @property
    def needed(self) -> list[int]:
        """The steps that the replaced facts took, fewest first."""
        return sorted(count for count in self.steps if count is not None)


# --- drawing --------------------------------------------------------------------------------------


class Sampler:
    """Draws probes from the facts: at most `count` of each kind, fewer where there are fewer.

    A probe's name is its relation's, but for `unaffected`, where it is the kind of distractor.
    """

    def __init__(self, facts: Sequence[Fact], rng: random.Random) -> None:
        self._facts = facts
        self._rng = rng
        self._objects = objects_of(facts)
        self._by_relation, self._by_subject = by_relation(facts), by_subject(facts)

    def trained(self, count: int) -> list[Probe]:
        """Draw facts in phrasings that they were trained in."""
        return self._asked([(f, p) for f in self._facts for p in f.trained_prompts], count)

    def held_out(self, count: int) -> list[Probe]:
        """Draw facts in phrasings that were trained with other subjects only."""
        return self._asked([(f, p) for f in self._facts for p in f.held_out_prompts], count)

    def overriding(self, count: int) -> list[Probe]:
        """Draw facts behind a new fact that contradicts them in another phrasing, and holds."""
        return [self._overridden(fact) for fact in self._some(self._facts, count)]

    def unaffected(self, count: int) -> list[Probe]:
        """Draw facts behind a new fact about something else: they stay. `count` of each kind."""
        return [
            self._beside(fact, kind)
            for kind in DISTRACTORS
            for fact in self._some([f for f in self._facts if len(self._pool(f, kind)) > 1], count)
        ]

    def replacements(self, count: int) -> list[FactReplacement]:
        """Draw facts in a trained phrasing, each with another object of its relation."""
        return [
            FactReplacement(
                self._rng.choice(fact.trained_prompts), fact.subject, self._new_object(fact)
            )
            for fact in self._some(self._facts, count)
        ]

    def _asked(self, pairs: Sequence[tuple[Fact, str]], count: int) -> list[Probe]:
        return [
            Probe(prompt=prompt, answer=fact.object, name=fact.relation.name)
            for fact, prompt in self._some(pairs, count)
        ]

    def _overridden(self, fact: Fact) -> Probe:
        statement, question = self._rng.sample(fact.trained_prompts, 2)
        answer = self._new_object(fact)
        prompt = in_context([f"{statement} {answer}"], question)
        return Probe(prompt=prompt, answer=answer, name=fact.relation.name)

    def _beside(self, fact: Fact, kind: str) -> Probe:
        while (distractor := self._rng.choice(self._pool(fact, kind))) == fact:
            pass
        statement = self._rng.choice(distractor.trained_prompts)
        question = self._rng.choice(fact.trained_prompts)
        target = self._new_object(distractor, never=fact.object)
        return Probe(
            prompt=in_context([f"{statement} {target}"], question), answer=fact.object, name=kind
        )

    def _pool(self, fact: Fact, kind: str) -> Sequence[Fact]:
        """Return the facts of a kind of distractor, this one among them."""
        if kind == "same_relation":
            return self._by_relation[fact.relation.name]
        return self._by_subject[fact.subject] if kind == "same_subject" else self._facts

    def _new_object(self, fact: Fact, never: str = "") -> str:
        candidates = [o for o in self._objects[fact.relation.name] if o not in (fact.object, never)]
        return self._rng.choice(candidates)

    def _some(self, items: Sequence[DrawnItem], count: int) -> list[DrawnItem]:
        return self._rng.sample(items, min(count, len(items)))


# --- answers --------------------------------------------------------------------------------------


def accuracy(task_model: TaskModel, probes: Sequence[Probe]) -> Accuracy:
    """Return the share of the probes that the model answers exactly."""
    outcomes = task_model.judge_in_full(
        [task_model.task.encode(p.prompt, p.answer) for p in probes]
    )
    by_name: dict[str, list[bool]] = {}
    for probe, is_right in zip(probes, outcomes, strict=True):
        by_name.setdefault(probe.name, []).append(is_right)
    shares = {name: fmean(name_outcomes) for name, name_outcomes in sorted(by_name.items())}
    return Accuracy(fmean(outcomes), shares, len(outcomes))


# --- mediation ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ReplacementTokens:
    """A replacement as tokens, and the vector that the search looks for."""

    encoding: Encoding
    subject: int  # position of the subject's last token
    vector: Tensor  # [d], added to the hidden state there


def mediation(
    task_model: TaskModel,
    replacements: Sequence[FactReplacement],
    block: int,
    *,
    steps_max: int = 80,
    rate: float = 0.5,
) -> Mediation:
    """Find the facts that a vector added to the output of `block` at the subject's last token
    replaces.

    The vectors start from zero and are found by Adam, each until greedy decoding gives its target.
    This is the search for a value of Meng et al. 2022 (ROME, eq. 4), without its regularisers.
    """
    cases = [_case(task_model, replacement) for replacement in replacements]
    optimizer = torch.optim.Adam([case.vector for case in cases], lr=rate)
    steps: dict[int, int] = {}
    for step in range(steps_max + 1):
        optimizer.zero_grad()
        pending = [i for i in range(len(cases)) if i not in steps]
        for batch in length_sorted([cases[i].encoding for i in pending], BATCH_TOKENS_MAX):
            indices = [pending[i] for i in batch]
            outcomes = _descend(task_model, block, [cases[i] for i in indices])
            steps.update(
                (i, step) for i, is_right in zip(indices, outcomes, strict=True) if is_right
            )
        optimizer.step()
    return Mediation(block, tuple(steps.get(i) for i in range(len(cases))))


def _case(task_model: TaskModel, replacement: FactReplacement) -> _ReplacementTokens:
    encoding = task_model.task.encode(replacement.prompt, replacement.target)
    _, token = subject_span(task_model.edited.tokenizer, replacement.prompt, replacement.subject)
    vector = torch.zeros(
        task_model.edited.anatomy.width, device=task_model.edited.device, requires_grad=True
    )
    return _ReplacementTokens(encoding, token, vector)


def _descend(task_model: TaskModel, block: int, cases: Sequence[_ReplacementTokens]) -> list[bool]:
    """Give each vector its gradient, and tell whether each case is right with its present
    vector."""
    device = task_model.edited.device
    inputs = task_model.task.inputs([case.encoding for case in cases])
    places = torch.tensor([case.subject for case in cases], device=device)
    vectors = torch.stack([case.vector for case in cases])

    def moved(hidden: Tensor) -> Tensor:
        sequences = torch.arange(len(cases), device=device)
        return hidden.index_put((sequences, places), vectors.to(hidden.dtype), accumulate=True)

    with hooks.altered(task_model.edited.anatomy.block(task_model.edited.model, block), moved):
        logits = logits_of(task_model.edited.model, {k: v.to(device) for k, v in inputs.items()})
    rows = [logits[i, list(case.encoding.positions)] for i, case in enumerate(cases)]
    targets = [torch.tensor(case.encoding.targets, device=device) for case in cases]
    cross_entropy(torch.cat(rows).float(), torch.cat(targets), reduction="sum").backward()
    return [bool((r.argmax(-1) == t).all()) for r, t in zip(rows, targets, strict=True)]
