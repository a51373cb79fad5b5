"""The long stream's corrections all stay in force, and leave the probes true."""

from __future__ import annotations

import pytest

from benchmarks.capacity import requests_of_atlas
from benchmarks.long_corrections import is_of_atlas, long_stream
from benchmarks.scope_data import DATA
from continual.atlas.facts import load_facts
from continual.prompts import normalised
from continual.requests import Request

pytestmark = pytest.mark.skipif(
    not (DATA / "pararel").is_dir(), reason="ParaRel is not in the data folder"
)
COUNT = 3_000


@pytest.fixture(scope="module")
def stream() -> list[Request]:
    return long_stream(COUNT)


def wordings(request: Request) -> tuple[str, ...]:
    return (request.prompt, *request.rephrases, *request.held_out_rephrases)


def test_there_are_as_many_as_asked_for_and_some_to_spare(stream):
    assert COUNT < len(stream) < 1.1 * COUNT


def test_all_of_the_atlas_corrections_are_among_them(stream):
    assert {r.id for r in stream if is_of_atlas(r)} == {r.id for r in requests_of_atlas()}


def test_no_two_are_about_one_fact_or_asked_in_the_same_words(stream):
    asked = [normalised(wording) for request in stream for wording in wordings(request)]
    assert len({request.key for request in stream}) == len(stream)
    assert len(set(asked)) == len(asked)


def test_the_facts_that_the_atlas_was_not_taught_are_about_none_of_its_subjects(stream):
    known = {normalised(fact.subject) for fact in load_facts()}
    assert not any(normalised(r.subject) in known for r in stream if not is_of_atlas(r))


def test_each_has_wordings_to_learn_from_and_others_held_out(stream):
    assert all(request.rephrases and request.held_out_rephrases for request in stream)


def test_the_same_seed_gives_the_same_stream_and_another_one_another(stream):
    assert long_stream(COUNT) == stream
    assert long_stream(COUNT, seed=1) != stream
