"""Where a gate at the last FFN opens, on queries made up for it and on the atlas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import gates
from benchmarks.gates import GENERAL, GateForm, GateQueries, QueryReader, opened
from benchmarks.real_model.questions import NEIGHBOUR, PARAPHRASE, SUBJECT, CounterFactRecord
from continual.base import load_base
from continual.embedded import ATLAS
from continual.model import EditedModel
from continual.site import Site
from continual.tasks import make_task

WIDTH = 16
NAMING = GateForm(copies=3, wordings=0, worded_copies=0, margin=0.35, naming=True)


def queries_near(direction: int, count: int, seed: int) -> torch.Tensor:
    """Queries near one axis, far from zero."""
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return 10.0 * torch.eye(WIDTH)[direction] + 0.1 * noise


@pytest.fixture
def asked() -> GateQueries:
    return GateQueries(
        subject="rome",
        asked=torch.stack([queries_near(0, 4, 1), queries_near(4, 4, 9)]),
        about_subject=queries_near(1, 5, 2),
        about_others=queries_near(2, 5, 3),
        others={
            PARAPHRASE: (queries_near(0, 3, 4), [True] * 3),
            NEIGHBOUR: (queries_near(0, 2, 5), [False] * 2),
            SUBJECT: (queries_near(1, 3, 6), [True] * 3),
            GENERAL: (queries_near(3, 4, 7), [False] * 4),
        },
    )


def test_a_gate_opens_on_paraphrases_and_asks_for_the_subject_where_it_is_told_to(asked):
    memory = queries_near(3, 50, 8)
    found = opened(asked, memory, NAMING)
    assert found == {
        PARAPHRASE: [True] * 3,
        NEIGHBOUR: [False] * 2,
        SUBJECT: [False] * 3,
        GENERAL: [False] * 4,
    }
    anyone = opened(asked, memory, replace(NAMING, naming=False))
    assert anyone is not None
    assert anyone[NEIGHBOUR] == [True] * 2


def test_a_wording_and_its_copies_are_own_rows_only_where_they_are_asked_for(asked):
    form = replace(NAMING, copies=2, wordings=1, worded_copies=1)
    torch.testing.assert_close(
        asked.own(form), torch.cat([asked.asked[0, :3], asked.asked[1, :2]]), rtol=0, atol=0
    )


def test_where_no_plane_separates_there_is_no_gate(asked):
    inside = replace(asked, about_subject=torch.cat([asked.asked[0], asked.about_subject]))
    assert opened(inside, queries_near(3, 50, 8), NAMING) is None
    line = gates.row([asked, inside], queries_near(3, 50, 8), NAMING)
    assert (line["inseparable"], line[PARAPHRASE], line[SUBJECT]) == (1, 1.0, 0.0)


def test_what_a_gate_is_asked_on_is_not_in_its_memory():
    """By the queries of the atlas: each kind has those of its own prompts."""
    places = [
        CounterFactRecord(
            n, f"{{}} has thing {n}, which is", f"Town {n}", f"P{n}", "red", (), (), ()
        )
        for n in range(12)
    ]
    places.append(replace(places[0], case=12, template="The red of {} is", subject="Town 12"))
    questions = {
        PARAPHRASE: ["The thing of Town 0 is"],
        NEIGHBOUR: ["Town 3 has thing 0, which is"],
        SUBJECT: ["The history of Town 0 began", "Town 0 is known for"],
        GENERAL: ["Once upon a time"],
    }
    base = load_base(str(ATLAS.directory))
    with EditedModel(base) as edited:
        reader = QueryReader(Site(edited, make_task(base, dict(ATLAS.task))))
        asked = reader.asked(places[0], places, ["Well"], questions, 2, 0)
        expected = reader.queries(questions[SUBJECT])
    queries, named = asked.others[SUBJECT]
    torch.testing.assert_close(queries, expected, rtol=1e-4, atol=1e-4)
    assert named == [True, True]
    assert asked.others[NEIGHBOUR][1] == [False]
    sizes = [len(part) for part in (asked.asked, asked.about_subject, asked.about_others)]
    assert sizes == [2, gates.ABOUT_SUBJECT + 1, gates.ABOUT_OTHERS]
    worded = reader.queries(["The red of Town 0 is", "Well. The red of Town 0 is"])
    torch.testing.assert_close(asked.asked[1], worded, rtol=1e-4, atol=1e-4)
    assert torch.cdist(asked.about_subject, expected).min() > 1e-2
