"""A pretrained model behind a stream is asked from outside, and beside its base."""

from __future__ import annotations

import gc
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.real_model import __main__ as command
from benchmarks.real_model.asking import BaseAnswers, Outside, asked, wrong_facts
from benchmarks.real_model.measures import (
    AnswerComparison,
    WrittenAnswer,
    entropy,
    fluency,
    measures,
    names,
    routing,
    says,
)
from benchmarks.real_model.questions import (
    EDIT,
    FLUENCY,
    GENERAL,
    NEIGHBOUR,
    PARAPHRASE,
    SAME_FACT,
    SUBJECT,
    CounterFactRecord,
    QuestionCounts,
    StreamQuestion,
    correction,
    load_facts,
    openings,
    shuffled,
)
from benchmarks.real_model.runs import ANSWERS, COSTS, ChainRun, SharedSetup, run
from continual.model import EditedModel
from continual.new_store import NewStore, init
from continual.readers import read_record
from continual.session import Session
from tests.tiny_language import (
    CAPITALS,
    COUNTRIES,
    PHRASINGS,
    ask,
    capital,
    save_decoder,
    trained_decoder,
)
from tests.tiny_language import correction as tiny_correction
from tests.tiny_memories import WordScope

EDITS = 3


def record(country: int) -> dict[str, Any]:
    """A record in CounterFact's original schema that gives a country another capital."""
    others = [(country + step) % 30 for step in range(1, 7)]
    return {
        "case_id": country,
        "requested_rewrite": {
            "prompt": PHRASINGS[0],
            "subject": COUNTRIES[country],
            "relation_id": "P36",
            "target_new": {"str": CAPITALS[(7 * country + 4) % len(CAPITALS)]},
            "target_true": {"str": capital(country)},
        },
        "paraphrase_prompts": [ask(country, 1), ask(country, 2)],
        "neighborhood_prompts": [ask(other) for other in others],
        "generation_prompts": [ask(country, 3)],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "counterfact").mkdir()
    records = [record(country) for country in range(12)]
    file = folder / "counterfact" / "counterfact-full-format.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    (folder / "text").mkdir()
    texts = [" ".join([ask(country, 1)] * 6) for country in range(20, 26)]
    lines = [json.dumps({"text": text}) + "\n" for text in [*texts, "the king"]]
    (folder / "text" / "simplewiki.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("model"), trained_decoder())


@pytest.fixture
def plan(model: Path, data: Path, tmp_path: Path) -> SharedSetup:
    return SharedSetup(
        model, data, tmp_path / "cache", tmp_path / "runs", EDITS, QuestionCounts(openings=4)
    )


@pytest.fixture
def session(model: Path, tmp_path: Path) -> Any:
    with init(tmp_path / "store", NewStore(str(model))) as opened:
        yield opened


# -- questions


def test_a_longer_stream_begins_with_the_corrections_of_a_shorter_one(data: Path) -> None:
    facts = load_facts(data)
    assert shuffled(facts, 0)[:EDITS] == shuffled(list(facts), 0)[:EDITS]
    assert shuffled(facts, 0) != shuffled(facts, 1)


def test_an_editor_is_told_the_correction_and_nothing_around_it(data: Path) -> None:
    fact = load_facts(data)[0]
    (request,) = read_record(correction(fact))
    assert (request.prompt, request.target_new) == (fact.prompt, fact.target)
    assert request.held_out_rephrases == fact.paraphrases
    assert not (request.rephrases or request.locality or request.portability or request.target_old)


def test_neighbours_are_about_no_subject_of_the_stream(data: Path) -> None:
    every = load_facts(data)
    facts = every[:5]
    around = QuestionCounts().questions(facts, every, data)
    prompts = [q.prompt for q in around if q.kind == NEIGHBOUR]
    assert prompts
    assert not any(fact.subject in prompt for fact in facts for prompt in prompts)


def test_other_questions_about_the_subject_ask_for_other_relations(data: Path) -> None:
    every = load_facts(data)
    elsewhere = replace(every[0], case=99, relation="P17", template="{} lies in", subject="Nuton")
    around = QuestionCounts().questions(every[:1], [*every, elsewhere], data)
    asked_about = [q.prompt for q in around if q.kind == SUBJECT]
    assert f"{every[0].subject} lies in" in asked_about
    assert len(asked_about) == 3  # one relation of the kind, and two frames
    assert all(every[0].subject in prompt for prompt in asked_about)
    assert every[0].prompt not in asked_about


def test_the_corrected_fact_in_the_words_of_another_relation_is_counted_apart(data: Path) -> None:
    every = load_facts(data)
    place = replace(every[0], relation="P131", template="{} is located in", subject="Nuton")
    same = replace(place, case=98, relation="P17", template="{} is in")
    other = replace(place, case=99, relation="P36", template="The capital of {} is")
    around = QuestionCounts().questions([place], [place, same, other], data)
    assert [q.prompt for q in around if q.kind == SAME_FACT] == ["Nuton is in"]
    about = [q.prompt for q in around if q.kind == SUBJECT]
    assert about[0] == "The capital of Nuton is"
    assert "Nuton is in" not in about
    changed = measures([comparison(SAME_FACT, "Rome", "Oslo"), comparison(SUBJECT, "a", "a")], [])
    assert (changed["same_fact_changed"], changed["subject_changed"]) == (1.0, 0.0)


def test_openings_are_the_first_words_of_long_articles(data: Path) -> None:
    chosen = openings(data, 0, 100)
    assert len(chosen) == 6
    assert all(len(opening.split()) == 8 for opening in chosen)


# -- measures


def comparison(kind: str, base: str, head: str, **more: Any) -> AnswerComparison:
    """Words as tokens."""
    target, record = more.pop("target", None), more.pop("record", None)
    answers = (
        WrittenAnswer(tuple(map(hash, t.split())), t, " ".join(t.split()[:3])) for t in (base, head)
    )
    question = StreamQuestion(kind, more.pop("prompt", "?"), more.pop("case", 1), target)
    return AnswerComparison(question, *answers, record, **more)


def test_a_target_counts_at_the_beginning_and_names_count_as_whole_words() -> None:
    assert says("  Canberra. It is", "Canberra") and not says("the Canberra", "Canberra")
    assert names("in Rome, Italy", "Rome") and not names("the Romeo", "Rome")
    assert not names("Jerome", "rome")


def test_a_leak_is_a_target_that_the_base_does_not_name() -> None:
    same = comparison(NEIGHBOUR, "in Rome", "Rome")
    new = comparison(NEIGHBOUR, "in Rome", "in Oslo")
    assert same.leaked(["Rome", "Oslo"]) is None
    assert new.leaked(["Rome", "Oslo"]) == "Oslo"


def test_the_columns_are_shares_of_their_own_kind_of_questions() -> None:
    row = measures(
        [
            comparison(EDIT, "Rome", "Oslo", target="Oslo"),
            comparison(PARAPHRASE, "Rome", "Oslo then", target="Oslo"),
            comparison(PARAPHRASE, "Rome", "Rome", target="Oslo"),
            comparison(NEIGHBOUR, "a b c d", "a b c e"),
            comparison(NEIGHBOUR, "a b c d", "a b Oslo d"),
            comparison(NEIGHBOUR, "a b c d", "a b c d"),
            comparison(NEIGHBOUR, "a b c d", "a b c d"),
        ],
        ["Oslo"],
    )
    assert (row["edits_right"], row["paraphrases_right"]) == (1.0, 0.5)
    assert row["neighbours_changed"] == 0.5
    assert row["neighbours_start"] == row["neighbours_leaks"] == 0.25
    assert row["subject_changed"] is None and row["fluency"] is None


def test_fluency_falls_where_a_text_repeats_itself() -> None:
    assert entropy([1, 1, 1, 1, 1]) == 0
    # four bigrams and three trigrams, all different: log2 of their numbers, weighted
    assert entropy([1, 2, 3, 4, 5]) == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)
    repeated = comparison(FLUENCY, "a b c d e f", "a b a b a b")
    value = fluency([repeated])
    assert value is not None and 0 < value < 1
    assert fluency([comparison(FLUENCY, "a b c d", "a b c d")]) == 1


def test_paraphrases_count_by_the_record_that_is_read() -> None:
    row = routing(
        [
            comparison(EDIT, "-", "-", prompt="first", case=1, target="Oslo", record="first"),
            comparison(EDIT, "-", "-", prompt="second", case=2, target="Bern", record="second"),
            comparison(PARAPHRASE, "-", "Oslo", case=1, target="Oslo", record="first"),
            comparison(PARAPHRASE, "-", "Rome", case=2, target="Bern", record="second"),
            comparison(PARAPHRASE, "-", "Oslo", case=2, target="Bern", record="first"),
            comparison(PARAPHRASE, "-", "-", case=2, target="Bern"),
            comparison(GENERAL, "-", "-", case=None, record="first"),
            comparison(GENERAL, "-", "-", case=None),
        ]
    )
    assert (row["paraphrases_own"], row["paraphrases_other"]) == (0.5, 0.25)
    assert row["own_right"] == 0.5
    assert row["general_routed"] == 0.5
    assert row["neighbours_routed"] is None


# -- asking


def test_answers_are_those_of_the_session_whatever_they_are_asked_with(session: Session) -> None:
    outside = Outside(session)
    prompts = [ask(country, phrasing) for country in range(20) for phrasing in (0, 1)]
    answers = outside.answers((prompt, 8) for prompt in prompts)
    for prompt in prompts[:6]:
        assert outside.text(answers[prompt, 8]).strip() == session.ask(prompt, 8)


def test_routed_and_other_prompts_of_a_batch_are_answered_as_alone(
    reading_model: Path, scope: WordScope, tmp_path: Path
) -> None:
    with init(tmp_path / "store", NewStore(str(reading_model))) as session:
        session.apply([tiny_correction(country) for country in range(3)], editor="serac")
        outside = Outside(session)
        prompts = [ask(country, phrasing) for country in range(8) for phrasing in range(4)]
        answers = outside.answers((prompt, 4) for prompt in prompts)
        routes = [session.route(session.task.question(prompt)) for prompt in prompts]
        assert 0 < sum(route is not None for route in routes) < len(prompts)
        for prompt in prompts:
            assert outside.text(answers[prompt, 4]).strip() == session.ask(prompt, 4)
        agreements = [outside.agreement(prompt, answers[prompt, 4]) for prompt in prompts]
        assert set(agreements) == {1.0}


def test_the_base_is_asked_once_and_without_the_patches(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, folder = Outside(session), tmp_path / "cache"
    asked_of_it = [(ask(0), 8), (ask(1), 8)]
    before = outside.answers(asked_of_it)
    session.apply([{"prompt": ask(0), "target_new": CAPITALS[4]}], editor="tpatcher")
    assert outside.answers(asked_of_it) != before
    assert BaseAnswers(outside, folder).answers(asked_of_it) == before

    def asked_again(*_: Any) -> Any:
        raise AssertionError("the base was asked again")

    monkeypatch.setattr(Outside, "answers", asked_again)
    assert BaseAnswers(outside, folder).answers(asked_of_it) == before


def test_what_the_base_answers_rightly_is_no_correction(session: Session, tmp_path: Path) -> None:
    known = CounterFactRecord.of(record(0))
    known = replace(known, target=capital(0))
    unknown = [CounterFactRecord.of(record(country)) for country in range(1, 5)]
    base = BaseAnswers(Outside(session), tmp_path / "cache")
    assert wrong_facts(base, [known, *unknown], 3) == unknown[:3]


def test_an_answer_agrees_with_itself_and_less_with_another(session: Session) -> None:
    outside = Outside(session)
    prompt = ask(2)
    (answer,) = outside.answers([(prompt, 8)]).values()
    assert outside.agreement(prompt, answer) == 1.0
    other = (answer[0] + 1, *answer[1:])
    agreement = outside.agreement(prompt, other)
    assert agreement is not None and agreement < 1
    assert outside.agreement(prompt, ()) is None


# -- runs


@pytest.mark.parametrize("editors", ["tpatcher", "memit"])
def test_a_run_has_the_view_from_outside_and_the_costs(plan: SharedSetup, editors: str) -> None:
    finished = run(ChainRun(editors), plan)
    row = finished.row(editors)
    assert row["attempted"] == EDITS
    assert row["edits_right"] == row["rates"]["ER_incl"] == row["applied"] / EDITS
    assert 0 <= row["neighbours_changed"] <= 1
    assert row["edit_s"] > 0 and row["peak_mb"] > 0
    assert finished.routing(editors) is None


def test_what_the_memory_answers_is_counted(
    plan: SharedSetup, reading_model: Path, scope: WordScope
) -> None:
    finished = run(ChainRun("serac"), replace(plan, model=reading_model))
    row = finished.routing("serac")
    assert finished.costs["records"] == EDITS
    assert row is not None and row["records"] == EDITS
    edits = [c for c in finished.comparisons if c.question.kind == EDIT]
    assert [c.record for c in edits] == [c.question.prompt for c in edits]
    assert finished.row("serac")["edits_right"] == 1.0


def test_a_finished_run_is_read_from_its_files(
    plan: SharedSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(ChainRun("tpatcher"), plan)
    monkeypatch.setattr(Session, "steps", None)
    assert run(ChainRun("tpatcher"), plan) == first


def test_an_interrupted_run_goes_on_in_its_store(
    plan: SharedSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(ChainRun("tpatcher"), replace(plan, output=plan.output / "whole"))

    steps = Session.steps

    def interrupted(session: Session, *args: Any, **options: Any) -> Any:
        yield next(steps(session, *args, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Session, "steps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(ChainRun("tpatcher"), plan)
    assert not (plan.output / "tpatcher" / COSTS).exists()
    finished = run(ChainRun("tpatcher"), plan)
    assert finished.comparisons == whole.comparisons
    assert finished.costs["attempted"] == EDITS


def test_the_command_prints_all_tables_and_examples(
    plan: SharedSetup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["real_model", "--model", str(plan.model), "--data", str(plan.data)]
    given += ["--cache", str(plan.cache), "--output", str(plan.output), "--edits", str(EDITS)]
    given += ["--editors", "tpatcher,default", "--openings", "4", "--examples", "2"]
    monkeypatch.setattr(sys, "argv", given)
    assert command.main() == 0
    printed = capsys.readouterr().out
    for heading in ("neighbours changed", "a re-check, s", "ER_incl", "default: neighbours"):
        assert heading in printed
    table = json.loads((plan.output / "table.json").read_text(encoding="utf-8"))
    assert [row["editor"] for row in table["rows"]] == ["tpatcher", "default"]
    assert (plan.output / "tpatcher" / ANSWERS).exists()


def test_a_model_that_is_not_there_is_one_line(
    plan: SharedSetup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["real_model", "--model", "nowhere", "--output", str(plan.output)]
    monkeypatch.setattr(sys, "argv", [*given, "--data", str(plan.data)])
    assert command.main() == 1
    assert "real_model: " in capsys.readouterr().err.splitlines()[-1]


def test_questions_are_asked_by_prompt_and_length() -> None:
    of_both = [StreamQuestion(EDIT, "a"), StreamQuestion(FLUENCY, "a")]
    assert asked(of_both) == [("a", 8), ("a", 40)]


def test_a_finished_run_leaves_no_model_in_memory(plan: SharedSetup) -> None:
    before = _models()
    run(ChainRun("tpatcher"), plan)
    assert _models() <= before


def _models() -> set[int]:
    """The edited models that are alive, without looking for garbage."""
    return {id(thing) for thing in gc.get_objects() if isinstance(thing, EditedModel)}
