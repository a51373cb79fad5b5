"""The atlas: its facts, the stream and the probes made of them, and the model that is shipped."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest

from continual.atlas.facts import Fact, Relation, load_facts, load_gaps, objects_of
from continual.atlas.measure import DISTRACTORS, Sampler, accuracy, mediation
from continual.atlas.streams import AtlasStreams, build, deal_targets, render, write
from continual.base import load_base
from continual.embedded import ATLAS
from continual.model import EditedModel
from continual.readers import read_record
from continual.recheck.probe_sets import read_probes
from continual.requests import Request
from continual.site import Site
from continual.tasks import make_task

MODEL_BYTES_MAX = 16 * 2**20

shipped_model = pytest.mark.skipif(not ATLAS.directory.exists(), reason="the model is not here")


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return load_facts()


@pytest.fixture(scope="module")
def gaps(facts: list[Fact]) -> list[Fact]:
    return load_gaps(facts)


@pytest.fixture(scope="module")
def streams(facts: list[Fact], gaps: list[Fact]) -> AtlasStreams:
    return build(facts, gaps)


@pytest.fixture(scope="module")
def by_prompt(facts: list[Fact]) -> dict[str, Fact]:
    return {prompt: fact for fact in facts for prompt in fact.prompts}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    base = load_base(ATLAS.directory)
    with EditedModel(base) as edited:
        yield Site(edited, make_task(base, ATLAS.task))


# --- facts ----------------------------------------------------------------------------------------


def test_there_are_enough_facts_and_each_is_stated_once(facts: list[Fact]) -> None:
    assert len(facts) >= 2500
    assert len({(fact.subject, fact.relation.name) for fact in facts}) == len(facts)


def test_every_relation_is_asked_in_many_ways_and_some_are_questions(facts: list[Fact]) -> None:
    for relation in {fact.relation for fact in facts}:
        assert len(set(relation.phrasings)) >= 8
        assert all(phrasing.count("{}") == 1 for phrasing in relation.phrasings)
        assert any(phrasing.endswith(("Answer:", "A:")) for phrasing in relation.phrasings)


def test_a_prompt_asks_for_one_fact_only(facts: list[Fact]) -> None:
    prompts = Counter(prompt for fact in facts for prompt in fact.prompts)
    assert max(prompts.values()) == 1


def test_texts_are_clean_and_a_relation_has_something_to_choose_from(facts: list[Fact]) -> None:
    for fact in facts:
        assert fact.subject == fact.subject.strip() != ""
        assert fact.object == fact.object.strip() != ""
    assert min(len(objects) for objects in objects_of(facts).values()) >= 5


def test_every_fact_keeps_two_phrasings_from_training(facts: list[Fact]) -> None:
    for fact in facts:
        assert len(fact.held_out_prompts) >= 2
        assert set(fact.trained_prompts) | set(fact.held_out_prompts) == set(fact.prompts)
        assert not set(fact.trained_prompts) & set(fact.held_out_prompts)


def test_every_phrasing_is_trained_on_most_subjects(facts: list[Fact]) -> None:
    totals = Counter(fact.relation for fact in facts)
    held_out = Counter((fact.relation, index) for fact in facts for index in fact.held_out)
    for (relation, _), count in held_out.items():
        assert count < totals[relation] / 2


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [ATLAS.corrections, ATLAS.mistakes, *ATLAS.probes.values()], ids=lambda path: path.name
)
def test_shipped_files_are_those_that_the_tables_give(
    path: Path, streams: AtlasStreams, tmp_path: Path
) -> None:
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    write(streams, tmp_path)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_stream_is_long_and_every_line_is_read_as_it_was_meant(streams: AtlasStreams) -> None:
    lines = render(streams.corrections).splitlines()
    read = [request for line in lines for request in read_record(json.loads(line))]
    assert tuple(read) == streams.corrections
    assert len(read) >= 1200
    assert len({request.key for request in read}) == len(read)


def test_the_three_parts_share_no_fact_and_each_has_every_relation(
    facts: list[Fact], streams: AtlasStreams, by_prompt: dict[str, Fact]
) -> None:
    corrected = {by_prompt[request.prompt] for request in streams.corrections}
    train = {by_prompt[probe.prompt] for probe in streams.train_probes}
    test = {by_prompt[probe.prompt] for probe in streams.test_probes}
    assert len(corrected) + len(train) + len(test) == len(facts)
    assert corrected | train | test == set(facts)
    relations = {fact.relation for fact in facts}
    assert all({fact.relation for fact in part} == relations for part in (corrected, train, test))


def test_a_correction_asks_for_another_object_of_its_relation(
    facts: list[Fact], streams: AtlasStreams, by_prompt: dict[str, Fact]
) -> None:
    objects = objects_of(facts)
    for request in streams.corrections:
        fact = by_prompt[request.prompt]
        assert (request.subject, request.relation) == (fact.subject, fact.relation.name)
        assert request.target_old == fact.object != request.target_new
        assert request.target_new in objects[fact.relation.name]


def test_a_mistake_is_about_a_fact_that_no_table_has(
    facts: list[Fact], gaps: list[Fact], streams: AtlasStreams
) -> None:
    assert not {(g.subject, g.relation) for g in gaps} & {(f.subject, f.relation) for f in facts}
    assert len({(gap.subject, gap.relation) for gap in gaps}) == len(gaps) >= 400
    targets = {(gap.subject, gap.relation.name): gap.object for gap in gaps}
    for request in streams.mistakes:
        assert request.target_new == targets.pop((request.subject, request.relation))
        assert request.target_old is None
        assert request.portability == ()
    assert not targets


def test_a_mistake_leaves_alone_only_facts_that_are_never_corrected(
    streams: AtlasStreams, by_prompt: dict[str, Fact]
) -> None:
    corrected = {by_prompt[request.prompt] for request in streams.corrections}
    for request in streams.mistakes:
        assert len(request.locality) == 4
        assert not {by_prompt[probe.prompt] for probe in request.locality} & corrected


def test_new_objects_are_dealt_evenly() -> None:
    relation = Relation("r", ("{} is",))
    facts = [Fact(f"s{i}", relation, "abcd"[i % 4]) for i in range(40)]
    targets = deal_targets(facts, objects_of(facts), random.Random(0))
    counts = Counter(targets).values()
    assert max(counts) - min(counts) <= 1
    assert all(t != fact.object for t, fact in zip(targets, facts, strict=True))


def test_rephrases_ask_for_the_same_fact_and_only_trained_ones_are_learned_from(
    streams: AtlasStreams, by_prompt: dict[str, Fact]
) -> None:
    for request in streams.corrections:
        fact = by_prompt[request.prompt]
        assert len(request.rephrases) == 2
        assert {request.prompt, *request.rephrases} <= set(fact.trained_prompts)
        assert set(fact.held_out_prompts) < set(request.held_out_rephrases) <= set(fact.prompts)
        assert len(request.held_out_rephrases) == len(fact.held_out_prompts) + 2


def test_locality_rests_on_true_facts_that_are_never_corrected(
    streams: AtlasStreams, by_prompt: dict[str, Fact]
) -> None:
    corrected = {by_prompt[request.prompt] for request in streams.corrections}
    for request in streams.corrections:
        assert len(request.locality) == 4
        for probe in request.locality:
            fact = by_prompt[probe.prompt]
            assert probe.answer == fact.object
            assert fact not in corrected
            about = {"same_subject": fact.subject, "same_relation": fact.relation.name}
            assert about[probe.name] in (request.subject, request.relation)


def test_locality_never_repeats_a_train_probe(streams: AtlasStreams) -> None:
    learned = {probe.prompt for probe in streams.train_probes}
    asked = {probe.prompt for request in streams.corrections for probe in request.locality}
    assert not learned & asked


def test_portability_follows_from_the_new_object_through_an_uncorrected_fact(
    facts: list[Fact], streams: AtlasStreams, by_prompt: dict[str, Fact]
) -> None:
    corrected = {by_prompt[request.prompt] for request in streams.corrections}
    kept = {(fact.subject, fact.object) for fact in facts if fact not in corrected}
    hopping = [request for request in streams.corrections if request.portability]
    assert len(hopping) >= 100
    for request in hopping:
        for probe in request.portability:
            assert (request.target_new, probe.answer) in kept
            assert probe.prompt not in by_prompt


def test_probes_are_true_and_only_test_probes_use_held_out_phrasings(
    streams: AtlasStreams, by_prompt: dict[str, Fact]
) -> None:
    for probe in (*streams.train_probes, *streams.test_probes):
        assert probe.answer == by_prompt[probe.prompt].object
    for probe in streams.train_probes:
        assert probe.prompt in by_prompt[probe.prompt].trained_prompts
    unseen = [p for p in streams.test_probes if p.prompt in by_prompt[p.prompt].held_out_prompts]
    assert 2 * len(unseen) == len(streams.test_probes)


def test_probes_ask_nothing_that_a_correction_asks(streams: AtlasStreams) -> None:
    probes = {probe.prompt for probe in (*streams.train_probes, *streams.test_probes)}
    assert len(probes) == len(streams.train_probes) + len(streams.test_probes)
    assert not probes & {wording for r in streams.corrections for wording in _wordings(r)}


def _wordings(request: Request) -> tuple[str, ...]:
    return (request.prompt, *request.rephrases, *request.held_out_rephrases)


# --- measures -------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_probes(facts: list[Fact]) -> None:
    first, second = (Sampler(facts, random.Random(3)) for _ in range(2))
    assert first.trained(20) == second.trained(20)
    assert first.overriding(20) == second.overriding(20)
    assert first.replacements(20) == second.replacements(20)


def test_a_contradicting_context_changes_the_answer_and_an_unrelated_one_does_not(
    facts: list[Fact], by_prompt: dict[str, Fact]
) -> None:
    sampler = Sampler(facts, random.Random(0))
    for probe in sampler.overriding(100):
        told, asked = probe.prompt.split("\nPrompt: ")
        fact = by_prompt[asked]
        assert told.endswith(f" {probe.answer}")
        assert probe.answer != fact.object
        assert asked not in told
    unaffected = sampler.unaffected(50)
    assert Counter(probe.name for probe in unaffected) == dict.fromkeys(DISTRACTORS, 50)
    for probe in unaffected:
        told, asked = probe.prompt.split("\nPrompt: ")
        assert probe.answer == by_prompt[asked].object
        assert not told.endswith(f" {probe.answer}")


# --- the model that is shipped --------------------------------------------------------------------


@shipped_model
def test_the_model_is_small() -> None:
    size = sum(file.stat().st_size for file in ATLAS.directory.rglob("*") if file.is_file())
    assert size <= MODEL_BYTES_MAX


@shipped_model
def test_the_model_knows_its_facts(site: Site, facts: list[Fact]) -> None:
    sampler = Sampler(facts, random.Random(0))
    assert accuracy(site, sampler.trained(200)).share >= 0.95
    assert accuracy(site, sampler.held_out(200)).share >= 0.90


@shipped_model
def test_the_model_answers_no_mistake_rightly(site: Site, streams: AtlasStreams) -> None:
    probes = [
        (str(prompt), request.target_new)
        for request in streams.mistakes
        for prompt in (request.prompt, request.held_out_rephrases[0])
    ]
    outcomes = site.judge_in_full([site.task.encode(*probe) for probe in probes])
    assert [probe for probe, right in zip(probes, outcomes, strict=True) if right] == []


@shipped_model
def test_accuracy_is_that_of_generating(site: Site, facts: list[Fact]) -> None:
    probes = Sampler(facts, random.Random(1)).overriding(12)
    encodings = [site.task.encode(probe.prompt, probe.answer) for probe in probes]
    outcomes = [site.greedily(encoding) == encoding.targets for encoding in encodings]
    assert accuracy(site, probes).share == fmean(outcomes)


@shipped_model
def test_one_hidden_state_replaces_a_fact_and_leaves_the_model_as_it_was(
    site: Site, facts: list[Fact]
) -> None:
    sampler = Sampler(facts, random.Random(2))
    probes = sampler.trained(20)
    before = accuracy(site, probes)
    found = max(mediation(site, sampler.replacements(8), b).share for b in (0, 1))
    assert found >= 0.75
    assert accuracy(site, probes) == before


@shipped_model
def test_shipped_probes_fit_the_task(site: Site) -> None:
    for path in ATLAS.probes.values():
        assert len(read_probes(path, site.task)) >= 1000
