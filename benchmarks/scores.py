"""CounterFact's scores (Meng et al. 2022, section 3.4), by teacher-forced log-probabilities.

    ES   share of requests whose prompt makes the new object more likely than the old one
    PS   the same, over the held-out rephrases
    NS   share of neighbourhood prompts that make their own object more likely than the new one
    S    the harmonic mean of the three

An answer's log-probability is the mean over its tokens, as in the published evaluation. The
engine's own metrics count greedy exact match, which is stricter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from continual.passes.partial import logits_of
from continual.requests import Request
from continual.session import Session
from continual.task_model import TaskModel
from continual.tasks import Encoding

NEIGHBOURS = ("same_relation", "neighborhood", "neighbourhood", "")
"""Names of locality probes that ask the request's own relation of another subject."""
SAME_SUBJECT = "same_subject"


@dataclass(frozen=True)
class LikelihoodPair:
    """A prompt, and the answer that has to be the more likely of two."""

    prompt: str
    wanted: str
    other: str


def scores(session: Session, requests: Sequence[Request]) -> dict[str, Any]:
    """Return ES, PS, NS and S of the requests as the model stands.

    Requests without an old object, or without probes of a kind, take no part.
    """
    known = [request for request in requests if request.target_old is not None]
    asked = {
        "ES": [LikelihoodPair(r.prompt, r.target_new, str(r.target_old)) for r in known],
        "PS": [
            LikelihoodPair(prompt, r.target_new, str(r.target_old))
            for r in known
            for prompt in r.held_out_rephrases
        ],
        "NS": [
            LikelihoodPair(probe.prompt, probe.answer, r.target_new)
            for r in known
            for probe in r.locality
            if probe.name in NEIGHBOURS and probe.answer != r.target_new
        ],
    }
    found = {name: share(session.site, pairs) for name, pairs in asked.items()}
    parts = [value for value in found.values() if value is not None]
    whole = harmonic_mean(parts) if len(parts) == len(found) else None
    return {**found, "S": whole}


@torch.inference_mode()
def share(task_model: TaskModel, pairs: Sequence[LikelihoodPair]) -> float | None:
    """Return the share of comparisons whose wanted answer is the more likely one."""
    if not pairs:
        return None
    wanted = log_probabilities(
        task_model, [task_model.task.encode(p.prompt, p.wanted) for p in pairs]
    )
    other = log_probabilities(
        task_model, [task_model.task.encode(p.prompt, p.other) for p in pairs]
    )
    return fmean(w > o for w, o in zip(wanted, other, strict=True))


def log_probabilities(task_model: TaskModel, encodings: Sequence[Encoding]) -> list[float]:
    """Return the mean log-probability of each answer's tokens."""

    def means(chosen: list[Encoding]) -> list[float]:
        logits = logits_of(task_model.edited.model, task_model.inputs(chosen))
        return [_mean_log_probability(row, e) for row, e in zip(logits, chosen, strict=True)]

    return task_model.in_passes(means, encodings)


def _mean_log_probability(logits: Tensor, encoding: Encoding) -> float:
    """Return the mean over an answer's tokens, from the logits [T, vocab] of its pass."""
    answers = log_softmax(logits[list(encoding.positions)].float(), -1)
    targets = torch.tensor(encoding.targets, device=answers.device)
    return float(answers.gather(1, targets[:, None]).mean())


def same_subject_locality(session: Session, requests: Sequence[Request]) -> float | None:
    """Return the share of other facts about the requests' subjects that are answered as before."""
    outcomes = session.run_state.ledger.outcomes()
    kept = [
        outcomes[key]
        for request in requests
        for index, probe in enumerate(request.locality)
        if probe.name == SAME_SUBJECT and (key := f"{request.id}:locality:{index}") in outcomes
    ]
    return fmean(kept) if kept else None


def drawn(requests: Sequence[Request], count: int, seed: int = 0) -> list[Request]:
    """Draw `count` requests, once for all sizes: a larger draw begins with the smaller one."""
    every = list(requests)
    random.Random(seed).shuffle(every)
    return every[:count]
