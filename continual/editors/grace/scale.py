"""The distances between the keys of a model: the measure of ε.

Takes the keys of training probes, each at the prompt's last token in the base model. The distance
from a key to the nearest one with another answer shows how near two inputs can be that must not be
confused. ε is set by a small quantile of these distances: half of it keeps the balls of all but the
nearest pairs apart. Knows probes and keys; leaves the use of the number to the editor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from continual.effects.places import GatePlace
from continual.proposals import EditContext
from continual.site.tokens import token_queries
from continual.task_model import TaskModel
from continual.tasks import Encoding, Question

PROBES_MAX = 256
QUANTILE = 0.05
FALLBACK = 2.0**-4
"""Of a key's own length, where there are no probes and no general text to measure by."""


def key_distance(context: EditContext, place: GatePlace) -> float | None:
    """Return the distance that few keys with different answers are below; None without two keys."""
    probes = _sample(context)
    if len(probes) < 2:
        return None
    with context.site.edited.bare():
        keys = first_keys(context.site, probes, place)
    return nearest_other(keys, [probe.targets for probe in probes])


def first_keys(model: TaskModel, encodings: Sequence[Encoding], place: GatePlace) -> Tensor:
    """Return [n, d] the query of each probe at its answer's start, on the model as it stands."""
    queries = token_queries(model, encodings, [place])[place]
    rows = [
        probe_queries[e.positions[0]] for probe_queries, e in zip(queries, encodings, strict=True)
    ]
    return torch.stack(rows)


def nearest_other(keys: Tensor, answers: Sequence[tuple[int, ...]]) -> float | None:
    """Return the small quantile of the distances from keys [n, d] to the nearest key with another
    answer; None if all answers are the same."""
    numbers = {answer: number for number, answer in enumerate(dict.fromkeys(answers))}
    labels = torch.tensor([numbers[answer] for answer in answers], device=keys.device)
    exact_keys = keys.double()
    apart = torch.cdist(exact_keys, exact_keys, compute_mode="donot_use_mm_for_euclid_dist")
    apart[labels[:, None] == labels] = torch.inf
    nearest = apart.amin(1)
    nearest = nearest[nearest.isfinite()]
    return float(nearest.quantile(QUANTILE)) if len(nearest) else None


def _sample(context: EditContext) -> list[Encoding]:
    """Draw training probes, the same in all of a history; general texts if there are none."""
    known_answers = context.known_answers()
    probes = list(known_answers.training)
    if len(probes) < 2:
        texts = [ids for ids in known_answers.general if len(ids) > 1]
        probes = [Encoding(Question(ids[:-1]), (len(ids) - 2,), ids[-1:]) for ids in texts]
    draw = torch.Generator().manual_seed(context.seed)
    drawn = torch.randperm(len(probes), generator=draw)[:PROBES_MAX]
    return [probes[i] for i in sorted(drawn.tolist())]
