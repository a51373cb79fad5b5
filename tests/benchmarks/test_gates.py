"""Where a gate at the last FFN opens, on queries made up for it and on the atlas."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch

from benchmarks import gates
from benchmarks.gates import GENERAL, Asked, opened
from benchmarks.real_model.questions import NEIGHBOUR, PARAPHRASE, SUBJECT

WIDTH = 16


def around(direction: int, count: int, seed: int) -> torch.Tensor:
    """Queries near one axis, far from zero."""
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return 10.0 * torch.eye(WIDTH)[direction] + 0.1 * noise


@pytest.fixture
def asked() -> Asked:
    return Asked(
        subject="rome",
        own=around(0, 4, 1),
        about_subject=around(1, 5, 2),
        about_others=around(2, 5, 3),
        others={
            PARAPHRASE: (around(0, 3, 4), [True] * 3),
            NEIGHBOUR: (around(0, 2, 5), [False] * 2),
            SUBJECT: (around(1, 3, 6), [True] * 3),
            GENERAL: (around(3, 4, 7), [False] * 4),
        },
    )


def test_a_gate_opens_on_paraphrases_and_asks_for_the_subject_where_it_is_told_to(asked):
    memory = around(3, 50, 8)
    found = opened(asked, memory, 3, 0.35, naming=True)
    assert found == {
        PARAPHRASE: [True] * 3,
        NEIGHBOUR: [False] * 2,
        SUBJECT: [False] * 3,
        GENERAL: [False] * 4,
    }
    anyone = opened(asked, memory, 3, 0.35, naming=False)
    assert anyone is not None
    assert anyone[NEIGHBOUR] == [True] * 2


def test_where_no_plane_separates_there_is_no_gate(asked):
    inside = replace(asked, about_subject=torch.cat([asked.own, asked.about_subject]))
    assert opened(inside, around(3, 50, 8), 3, 0.35, naming=True) is None
    line = gates.row([asked, inside], around(3, 50, 8), 3, 0.35, naming=True)
    assert (line["inseparable"], line[PARAPHRASE], line[SUBJECT]) == (1, 1.0, 0.0)


def test_the_command_knows_its_options():
    given = gates.parser().parse_args(["--model", "somewhere", "--rows", "0,10"])
    assert isinstance(given, argparse.Namespace)
    assert (given.rows, given.records) == ("0,10", 40)
