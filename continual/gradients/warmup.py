"""Texts whose rows a normaliser begins with, so that the first edits have something to compare to.

Training probes of the base with each other's answers: they are wrong as an edit's answer is, and
depend on the store alone. Leaves reading their rows to ``rows``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from continual.tasks import Encoding


def misanswered(probes: Sequence[Encoding], count: int, seed: int) -> list[Encoding]:
    """Return at most `count` of the probes, drawn by the seed, each with the answer of another one
    that has as many tokens. Probes without such another are left out."""
    order = torch.randperm(len(probes), generator=torch.Generator().manual_seed(seed)).tolist()
    groups: dict[int, list[Encoding]] = {}
    for index in order:
        if not probes[index].within:
            groups.setdefault(len(probes[index].targets), []).append(probes[index])
    swapped = [pair for group in groups.values() for pair in _swapped(group)]
    return swapped[:count]


def _swapped(group: Sequence[Encoding]) -> list[Encoding]:
    """Give each probe of a group the answer of the next one, where that is another answer."""
    nexts = [*group[1:], *group[:1]]
    return [
        probe.answered(other.targets)
        for probe, other in zip(group, nexts, strict=True)
        if other.targets != probe.targets
    ]
