"""Readers: every format ends in the same request, and says what it cannot read."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.errors import CeditError, RequestError
from continual.readers import formats, mapped, pararel, read_record
from continual.requests import Probe, Request
from continual.streams import open_stream

DATA = Path(os.environ.get("CEDIT_DATA", Path(__file__).parents[3] / "shared" / "data"))

CAPITAL = "The capital of Australia is"
REPHRASE = "Australia's capital is"
LOCALITY = Probe(prompt="The capital of Japan is", answer="Tokyo", name="neighborhood")
HOP = Probe(prompt="Parliament of Australia sits in", answer="Canberra", name="one_hop")

SAMPLES: dict[str, dict[str, object]] = {
    "plain": {
        "prompt": CAPITAL,
        "target_new": "Canberra",
        "rephrases": [REPHRASE],
        "held_out_rephrases": ["In Australia the capital is"],
        "locality": [{"prompt": "The capital of Japan is", "answer": "Tokyo"}],
    },
    "easyedit": {
        "prompt": CAPITAL,
        "target_new": "Canberra",
        "ground_truth": "Sydney",
        "subject": "Australia",
        "rephrase_prompt": REPHRASE,
        "locality": {"neighborhood": {"prompt": LOCALITY.prompt, "ground_truth": "Tokyo"}},
        "portability": {"one_hop": {"prompt": [HOP.prompt], "ground_truth": ["Canberra"]}},
    },
    "easyedit_counterfact": {
        "case_id": 7,
        "prompt": CAPITAL,
        "target_new": "Canberra",
        "subject": "Australia",
        "ground_truth": "Sydney",
        "rephrase_prompt": REPHRASE,
        "locality_prompt": LOCALITY.prompt,
        "locality_ground_truth": "Tokyo",
    },
    "counterfact": {
        "case_id": 7,
        "requested_rewrite": {
            "prompt": "The capital of {} is",
            "relation_id": "P36",
            "target_new": {"str": "Canberra", "id": "Q3114"},
            "target_true": {"str": "Sydney", "id": "Q3130"},
            "subject": "Australia",
        },
        "paraphrase_prompts": [REPHRASE],
        "neighborhood_prompts": ["The capital of New South Wales is"],
        "attribute_prompts": ["The capital of the Capital Territory is"],
        "generation_prompts": ["Australia is"],
    },
    "mquake": {
        "case_id": 7,
        "requested_rewrite": [
            {
                "prompt": "{} is a citizen of",
                "relation_id": "P27",
                "target_new": {"str": "Australia"},
                "target_true": {"str": "Austria"},
                "subject": "Ada",
                "question": "Of which country is Ada a citizen?",
            },
            {
                "prompt": "The capital of {} is",
                "relation_id": "P36",
                "target_new": {"str": "Canberra"},
                "target_true": {"str": "Sydney"},
                "subject": "Australia",
                "question": "What is the capital of Australia?",
            },
        ],
        "questions": ["What is the capital of Ada's country?"],
        "answer": "Vienna",
        "new_answer": "Canberra",
        "new_answer_alias": [],
    },
    "zsre_mend": {
        "subject": "Australia",
        "src": "What is the capital of Australia?",
        "pred": "Perth",
        "rephrase": "Which city is Australia's capital?",
        "alt": "Canberra",
        "answers": ["Sydney"],
        "loc": "nq question: who sang it",
        "loc_ans": "Ella",
        "cond": "Perth >> Canberra || What is the capital of Australia?",
    },
    "knowedit": {
        "subject": "Australia",
        "prompt": CAPITAL,
        "target_new": "Canberra",
        "ground_truth": ["Sydney"],
        "rephrase_prompt": REPHRASE,
        "portability": {"one_hop": [{"prompt": HOP.prompt, "ground_truth": [["Canberra", "ACT"]]}]},
        "locality": {"neighborhood": [{"prompt": LOCALITY.prompt, "ground_truth": ["Tokyo"]}]},
    },
    "wikibigedit": {
        "subject": "Australia",
        "update": "What is the capital of Australia?",
        "rephrase": "Which city is Australia's capital?",
        "personas": "Mate, what's the capital?",
        "ans": "Canberra",
        "loc": "What is the capital of Japan?",
        "loc_ans": "Tokyo",
        "mhop": None,
        "mhop_ans": None,
    },
    "tpatcher": {
        "id": "x1",
        "input": "What is the capital of Australia?",
        "output": [{"provenance": []}, {"answer": "Canberra"}, {"answer": "ACT"}],
        "rephrases": ["Which city is Australia's capital?"],
    },
    "fever": {"id": 7, "claim": "Canberra is a capital.", "label": "SUPPORTS", "evidence": [[]]},
    "langfuse": {
        "id": "item-7",
        "input": {"messages": [{"role": "user", "content": CAPITAL}]},
        "expectedOutput": {"role": "assistant", "content": "Canberra"},
        "output": "Sydney",
    },
    "label_studio": {
        "id": 7,
        "data": {"prompt": CAPITAL, "answer": "Sydney"},
        "annotations": [
            {"result": [{"type": "textarea", "value": {"text": ["Perth"]}}]},
            {
                "result": [
                    {"type": "choices", "value": {"choices": ["wrong"]}},
                    {"type": "textarea", "value": {"text": ["Canberra"]}},
                ]
            },
            {"was_cancelled": True, "result": [{"type": "textarea", "value": {"text": ["x"]}}]},
        ],
    },
    "argilla": {
        "id": "7",
        "fields": {"instruction": CAPITAL, "response": "Sydney"},
        "responses": {
            "rating": [{"value": 1}],
            "comment": [{"value": "no"}],
            "correction": [
                {"value": "Hobart", "status": "discarded"},
                {"value": "Canberra", "status": "submitted"},
            ],
        },
    },
    "known": {
        "known_id": 7,
        "subject": "Australia",
        "attribute": "Canberra",
        "template": "The capital of {} is",
        "prediction": " the city of Canberra",
        "prompt": "The capital of Australia is the city of",
        "relation_id": "P36",
    },
    "mmedit": {
        "src": "How many balls are there?",
        "pred": "no",
        "rephrase": "What is the number of balls?",
        "alt": "2",
        "image": "balls.jpg",
        "image_rephrase": "more_balls.jpg",
        "loc": "nq question: who sang it",
        "loc_ans": "Ella",
        "m_loc": "cups.jpg",
        "m_loc_q": "How many cups?",
        "m_loc_a": "3",
    },
    "zsre_languages": {
        language: {
            "subject": "Australia",
            "src": f"{language}: What is the capital of Australia?",
            "rephrase": "Which city is Australia's capital?",
            "alt": "Canberra",
            "loc": "who sang it",
            "loc_ans": "Ella",
            "portability": {"New Question": "Where does it lie?", "New Answer": "Australia"},
        }
        for language in ("de", "zh")
    },
    "ripple": {
        "example_type": "popular",
        "edit": {
            "prompt": "The name of the capital of New Australia is New Vienna.",
            "subject_id": "Q408",
            "relation": "CAPITAL",
            "target_id": "Q1741",
            "original_fact": {
                "prompt": "The name of the capital of New Australia is New Canberra.",
                "relation": "CAPITAL",
            },
        },
        "Relation_Specifity": [
            {
                "test_queries": [
                    {
                        "prompt": "The name of the continent of Australia is",
                        "answers": [
                            {"value": "", "aliases": []},
                            {"value": "Oceania", "aliases": ["Australia"]},
                        ],
                    },
                    {"prompt": "Nobody knows", "answers": []},
                ]
            }
        ],
        "Compositionality_I": [
            {"test_queries": [{"prompt": "It lies in", "answers": [{"value": "Austria"}]}]}
        ],
        "Forgetfulness": [],
    },
    "halluedit": {
        "topic": "places_country",
        "subject": "Australia",
        "relation": "capital",
        "object": "Vienna",
        "question": "What is the capital of Australia?",
        "output_m": "Sydney",
        "eval_m": "0.0",
        "paraphrased_question": "Which city is the capital of Australia?",
        "locality_question": "What is the capital of Peru?",
        "question_2hop": "In which country lies the capital of Australia?",
        "answer_2hop": "Austria",
    },
    "rome": {
        "case_id": 7,
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "target_new": {"str": "Canberra", "id": "Q3114"},
        "target_true": {"str": "Sydney"},
        "subject": "Australia",
    },
    "pararel": {"sub_label": "Australia", "obj_label": "Canberra", "uuid": "u"},
}
EDITS = {name: sample for name, sample in SAMPLES.items() if name != "pararel"}


def read_one(name: str, **changes: object) -> Request:
    (request,) = read_record(SAMPLES[name] | changes)
    return request


def without(name: str, *keys: str) -> dict[str, object]:
    return {key: value for key, value in SAMPLES[name].items() if key not in keys}


def test_every_format_has_a_sample_here():
    assert {format_.NAME for format_ in formats()} == SAMPLES.keys()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_record_is_read_by_its_own_format(name):
    recognised = [format_.NAME for format_ in formats() if format_.recognises(SAMPLES[name])]
    assert recognised[0] == name


@pytest.mark.parametrize("name", EDITS)
def test_reading_leaves_the_record_as_it_was(name):
    before = json.dumps(SAMPLES[name])
    read_record(SAMPLES[name])
    assert json.dumps(SAMPLES[name]) == before


@pytest.mark.parametrize("name", sorted(EDITS.keys() - {"plain"}))
def test_paraphrases_of_evaluation_sets_are_never_learned_from(name):
    assert all(request.rephrases == () for request in read_record(SAMPLES[name]))


def test_plain_keeps_the_two_kinds_of_rephrases_apart():
    request = read_one("plain")
    assert request.rephrases == (REPHRASE,)
    assert request.held_out_rephrases == ("In Australia the capital is",)


@pytest.mark.parametrize("name", ["easyedit", "knowedit"])
def test_named_groups_become_named_probes(name):
    request = read_one(name)
    assert request.prompt == CAPITAL
    assert (request.target_new, request.target_old) == ("Canberra", "Sydney")
    assert request.held_out_rephrases == (REPHRASE,)
    assert request.locality == (LOCALITY,)
    assert request.portability == (HOP,)


def test_wikibio_has_other_names_for_the_same_keys():
    record = {"concept": "Ada", "text": "Ada was", "labels": "a poet.", "locality": {}}
    assert read_record(record) == [Request(prompt="Ada was", target_new="a poet.", subject="Ada")]


def test_flat_counterfact_has_one_rephrase_and_one_locality_probe():
    request = read_one("easyedit_counterfact")
    assert request.held_out_rephrases == (REPHRASE,)
    assert [(probe.prompt, probe.answer) for probe in request.locality] == [
        ("The capital of Japan is", "Tokyo")
    ]
    assert request.case == "7"


def test_the_rephrase_out_of_distribution_is_held_out():
    request = read_one("easyedit_counterfact", ood_rephrase="Elsewhere")
    assert request.held_out_rephrases == (REPHRASE, "Elsewhere")


def test_counterfact_fills_the_subject_into_the_prompt():
    request = read_one("counterfact")
    assert request.prompt == CAPITAL
    assert (request.subject, request.relation) == ("Australia", "P36")
    assert (request.target_new, request.target_old) == ("Canberra", "Sydney")


def test_the_neighbourhood_keeps_the_old_target():
    (probe,) = read_one("counterfact").locality
    assert probe == Probe(
        prompt="The capital of New South Wales is", answer="Sydney", name="neighborhood"
    )


@pytest.mark.parametrize("template", ["The capital is", "{} and {}"])
def test_a_template_takes_its_subject_in_one_place(template):
    rewrite = SAMPLES["counterfact"]["requested_rewrite"] | {"prompt": template}
    with pytest.raises(RequestError, match=r"counterfact: 'prompt' has . slots"):
        read_one("counterfact", requested_rewrite=rewrite)


def test_a_subject_with_braces_is_taken_as_it_is():
    rewrite = SAMPLES["counterfact"]["requested_rewrite"] | {"subject": "{0} {x} {}"}
    request = read_one("counterfact", requested_rewrite=rewrite)
    assert request.prompt == "The capital of {0} {x} {} is"


def test_mquake_gives_one_request_for_each_rewrite():
    first, last = read_record(SAMPLES["mquake"])
    assert (first.prompt, first.target_new) == ("Ada is a citizen of", "Australia")
    assert last.held_out_rephrases == ("What is the capital of Australia?",)
    assert first.case == last.case == "7"


def test_multi_hop_questions_wait_for_the_last_rewrite():
    first, last = read_record(SAMPLES["mquake"])
    assert first.portability == ()
    assert [probe.answer for probe in last.portability] == ["Canberra"]


def test_the_alternative_answer_of_zsre_is_the_new_target():
    request = read_one("zsre_mend")
    assert (request.target_new, request.target_old) == ("Canberra", "Sydney")


def test_without_an_alternative_the_true_answer_replaces_the_prediction():
    (request,) = read_record(without("zsre_mend", "alt"))
    assert (request.target_new, request.target_old) == ("Sydney", "Perth")


def test_an_empty_alternative_is_not_guessed():
    with pytest.raises(RequestError, match="zsre_mend: 'alt' is empty"):
        read_one("zsre_mend", alt="")


@pytest.mark.parametrize("name", ["zsre_mend", "mmedit"])
def test_locality_questions_lose_the_prefix_of_their_source(name):
    assert read_one(name).locality == (Probe(prompt="who sang it", answer="Ella", name="loc"),)


def test_zsre_portability_is_its_new_question():
    recalled = {"Recalled Relation": "(a, b, c)", "New Question": "Where?", "New Answer": "There"}
    (probe,) = read_one("zsre_mend", portability=recalled).portability
    assert (probe.prompt, probe.answer) == ("Where?", "There")


def test_wikibigedit_reads_every_wording_and_the_hop_where_there_is_one():
    request = read_one("wikibigedit")
    assert len(request.held_out_rephrases) == 2
    assert request.portability == ()
    assert read_one("wikibigedit", mhop="Who?", mhop_ans="Ada").portability[0].answer == "Ada"


def test_the_first_output_with_an_answer_is_the_target():
    assert read_one("tpatcher").target_new == "Canberra"
    with pytest.raises(RequestError, match="'output' has no entry with an 'answer'"):
        read_one("tpatcher", output=[{}])


def test_a_claim_is_answered_by_its_label():
    request = read_one("fever", label="REFUTES")
    assert (request.prompt, request.target_new) == ("Canberra is a capital.", "REFUTES")


def test_a_label_outside_the_two_classes_is_refused():
    with pytest.raises(RequestError, match="'NOT ENOUGH INFO' is not one of the two classes"):
        read_one("fever", label="NOT ENOUGH INFO")


def test_a_known_fact_is_asked_as_it_was_answered():
    request = read_one("known")
    assert request.prompt == "The capital of Australia is the city of"
    assert (request.target_new, request.relation) == ("Canberra", "P36")


def test_a_fact_without_a_prompt_says_what_to_do():
    with pytest.raises(RequestError, match=r"continual\.readers\.pararel\.join"):
        read_record(SAMPLES["pararel"])


def test_a_fact_is_asked_by_the_patterns_that_end_in_its_object():
    patterns = [
        "The capital of [X] is [Y] .",
        "[Y] is the capital of [X].",
        "[X]'s capital is [Y].",
    ]
    request = pararel.join(SAMPLES["pararel"], patterns, "P36")
    assert request.prompt == CAPITAL
    assert request.held_out_rephrases == (REPHRASE,)
    assert (request.subject, request.relation) == ("Australia", "P36")


def test_a_relation_without_such_a_pattern_is_refused():
    with pytest.raises(RequestError, match="no pattern of the relation 'P36'"):
        pararel.join(SAMPLES["pararel"], ["[Y] is the capital of [X]."], "P36")


def test_a_probe_without_an_answer_measures_nothing_and_is_left_out():
    assert read_one("easyedit_counterfact", locality_ground_truth=" ").locality == ()


def test_an_answer_without_a_prompt_is_refused():
    with pytest.raises(RequestError, match="'loc' has an answer without a prompt"):
        read_one("zsre_mend", loc=None)


def test_prompts_and_answers_of_a_group_must_pair_up():
    group = {"neighborhood": {"prompt": ["a", "b"], "ground_truth": ["c"]}}
    with pytest.raises(RequestError, match=r"'locality\.neighborhood': expected one ground_truth"):
        read_one("easyedit", locality=group)


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in ("easyedit", "knowedit") for key in EDITS[name]]
)
def test_a_value_of_the_wrong_type_is_named(name, key):
    with pytest.raises(RequestError, match=f"{key}.*expected .*, found a number|is not a key"):
        read_one(name, **{key: 3})


@pytest.mark.parametrize("name", ["easyedit", "easyedit_counterfact", "knowedit"])
def test_keys_of_two_formats_in_one_record_are_not_passed_over(name):
    with pytest.raises(RequestError, match=r"plain: .* is not a key of cedit's own format"):
        read_one(name, rephrases=["a"], rephrase_prompt="b", locality=None, portability=None)


def test_each_language_of_a_record_is_a_request():
    de, zh = read_record(SAMPLES["zsre_languages"])
    assert (de.prompt[:3], zh.prompt[:3]) == ("de:", "zh:")
    assert de.portability[0].answer == "Australia"
    broken = {**SAMPLES["zsre_languages"]["de"], "alt": ""}
    with pytest.raises(RequestError, match=r"zsre_languages: de: 'alt' is empty"):
        read_one("zsre_languages", de=broken)


def test_what_two_sentences_share_up_to_their_verb_is_the_prompt():
    request = read_one("ripple")
    assert request.prompt == "The name of the capital of New Australia is"
    assert (request.target_new, request.target_old) == ("New Vienna", "New Canberra")
    assert [probe.answer for probe in request.locality] == ["Oceania"]
    assert [probe.answer for probe in request.portability] == ["Austria"]


def test_a_sentence_alone_does_not_say_where_its_target_begins():
    edit = {"prompt": "The capital of Australia is Vienna.", "relation": "CAPITAL"}
    with pytest.raises(RequestError, match="ripple: 'edit' has no 'original_fact'"):
        read_one("ripple", edit=edit)


def test_questions_over_hops_are_portability_and_one_without_an_answer_is_nothing():
    request = read_one("halluedit")
    assert (request.prompt, request.target_new) == ("What is the capital of Australia?", "Vienna")
    assert [probe.answer for probe in request.portability] == ["Austria"]
    assert (request.locality, request.extra) == ((), {"topic": "places_country"})


def test_the_subject_stands_in_the_slot_of_romes_requests():
    request = read_one("rome")
    assert (request.prompt, request.subject) == (CAPITAL, "Australia")
    assert (request.target_new, request.target_old) == ("Canberra", "Sydney")
    assert (request.relation, request.case, request.extra) == ("P36", "7", {})


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "The capital of {} is", "subject": "Australia", "target_new": "x"},
        {"prompt": "The capital of {} is", "subject": "Australia", "target_new": {"str": "x"}},
        {
            **{"prompt": "The capital of {} is", "subject": "Australia", "target_new": "x"},
            **{"rephrases": ["{} has the capital"], "held_out_rephrases": "{}'s capital is"},
        },
        SAMPLES["easyedit"] | {"prompt": "The capital of {} is"},
        SAMPLES["knowedit"] | {"prompt": "The capital of {} is"},
        SAMPLES["easyedit_counterfact"] | {"prompt": "The capital of {} is"},
    ],
)
def test_a_prompt_with_a_slot_gets_its_subject_in_every_format(record):
    (request,) = read_record(record)
    assert request.prompt == CAPITAL
    assert not any("{}" in wording for wording in request.rephrases + request.held_out_rephrases)


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [("dict() is {} and", None), ("In Python dict() is {} and", "Python"), ("no slot", "Peru")],
)
def test_braces_without_a_subject_or_beside_it_are_text(prompt, subject):
    (request,) = read_record({"prompt": prompt, "target_new": "x", "subject": subject})
    assert request.prompt == prompt


def test_two_slots_are_not_guessed():
    with pytest.raises(RequestError, match=r"plain: 'prompt' has 2 slots {}"):
        read_record({"prompt": "{} and {} are", "subject": "Peru", "target_new": "x"})


def test_keys_that_cedit_does_not_have_are_kept_and_name_nothing():
    record = {"fact_id": "geo_001", "prompt": CAPITAL, "target_new": "Vienna", "target_old": None}
    (request,) = read_record(record)
    assert request.extra == {"fact_id": "geo_001"}
    assert request.id == read_record({"prompt": CAPITAL, "target_new": "Vienna"})[0].id
    assert Request.from_json(request.to_json()) == request
    assert "extra" not in request.content()


def test_other_formats_keep_what_they_do_not_read_and_leave_out_what_nobody_needs():
    assert read_one("counterfact", note="mine").extra == {"note": "mine"}
    assert all(
        request.extra == {}
        for name in ("zsre_mend", "mquake", "known")
        for request in read_record(SAMPLES[name])
    )


def test_what_is_kept_beside_a_request_is_bounded_and_can_be_written():
    (request,) = read_record(
        {"prompt": "a", "target_new": "b", "long": "x" * 20_000, "half": "\ud83d", "ok": [1, None]}
    )
    assert request.extra == {"long": None, "ok": [1, None]}


@pytest.mark.parametrize(
    ("record", "guess"),
    [
        ({"prompt": CAPITAL, "target": "Vienna"}, "did you mean 'target_new' by 'target'?"),
        ({"promt": CAPITAL, "target_new": "Vienna"}, "did you mean 'prompt' by 'promt'?"),
    ],
)
def test_a_key_that_looks_like_a_known_one_is_named(record, guess):
    with pytest.raises(RequestError, match=re.escape(guess)):
        read_record(record)


def test_a_person_can_say_which_key_is_which():
    record = {
        "event": "Australia moves its capital.",
        "fact": {"qas": [{"question": "What is the capital of Australia?", "answer": ["Vienna"]}]},
    }
    keys = {"prompt": "fact.qas.0.question", "target_new": "fact.qas.0.answer"}
    (request,) = read_record(record, keys)
    assert (request.prompt, request.target_new) == ("What is the capital of Australia?", "Vienna")
    assert request.extra == {"event": "Australia moves its capital."}
    with pytest.raises(RequestError, match=r"has not all keys that .* names; its keys are: 'x'"):
        read_record({"x": 1}, keys)
    assert read_record(SAMPLES["plain"], keys)[0].prompt == CAPITAL
    with pytest.raises(CeditError, match="question=x names no key of a correction"):
        mapped.checked({"question": "x"})


def test_an_unknown_record_is_told_its_keys_and_the_formats():
    with pytest.raises(RequestError) as caught:
        read_record({"question": "Who?", "answer": "Ada"})
    assert "'answer', 'question'" in caught.value.reason
    assert all(format_.NAME in caught.value.reason for format_ in formats())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["prompt", "ground_truth", "str", "x"]), inner, max_size=2
        )
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_any_value_anywhere_gives_requests_or_a_reason(name, data):
    key = data.draw(st.sampled_from(sorted(SAMPLES[name])))
    try:
        assert read_record(SAMPLES[name] | {key: data.draw(values)})
    except RequestError as error:
        assert error.reason.isprintable()


def outcomes(path: str) -> tuple[int, int, Counter[str]]:
    """How many records and requests a real file has, and why records were refused."""
    if not (DATA / path).exists():
        pytest.skip(f"{path} is not there")
    items = list(open_stream(str(DATA / path)))
    reasons = Counter(item.reason for item in items if item.reason is not None)
    return len(items), sum(len(item.requests) for item in items), reasons


@pytest.mark.parametrize(
    ("path", "records", "requests"),
    [
        ("counterfact/counterfact-train.json", 10_000, 10_000),
        ("counterfact/counterfact-val.json", 1_919, 1_919),
        ("counterfact/counterfact-full-format.json", 562, 562),
        ("zsre/zsre_eval_portability.json", 500, 500),
        ("zsre/knowedit_zsre.json", 652, 652),
        ("mquake/MQuAKE-CF-1.5k.json", 1_500, 2_471),
        ("hallucination/hallucination-train.json", 306, 306),
        ("temporal/temporal-train.json", 75, 75),
        ("known/known_1000.json", 1_209, 1_209),
        ("mmedit/caption_eval_sample.json", 200, 200),
        ("mmedit/vqa_eval_sample.json", 200, 200),
    ],
)
def test_a_public_file_is_read_whole(path, records, requests):
    assert outcomes(path) == (records, requests, Counter())


def test_fever_gives_its_two_classes_and_refuses_the_third():
    records, requests, reasons = outcomes("fever/paper_dev.jsonl")
    assert (records, requests) == (9_999, 6_666)
    ((reason, count),) = reasons.items()
    assert "'NOT ENOUGH INFO' is not one of the two classes" in reason
    assert count == 3_333


def test_two_zsre_records_have_no_new_target():
    assert outcomes("zsre/zsre_mend_train_1k.json") == (
        1_000,
        998,
        Counter({"zsre_mend: 'alt' is empty": 2}),
    )


def test_every_pararel_relation_with_patterns_can_be_asked():
    folder = DATA / "pararel"
    if not folder.exists():
        pytest.skip("pararel is not there")
    asked = 0
    for patterns_file in sorted((folder / "graphs_json").glob("P*.jsonl")):
        patterns = [json.loads(line)["pattern"] for line in patterns_file.open(encoding="utf-8")]
        for line in (folder / "trex_lms_vocab" / patterns_file.name).open(encoding="utf-8"):
            request = pararel.join(json.loads(line), patterns, patterns_file.stem)
            assert request.subject in request.prompt
            assert "[" not in request.prompt.replace(request.subject, "")
            asked += 1
    assert asked == 27_610


def test_the_locality_of_real_counterfact_keeps_the_old_target():
    path = DATA / "counterfact" / "counterfact-full-format.json"
    if not path.exists():
        pytest.skip("counterfact is not there")
    for item in open_stream(str(path)):
        (request,) = item.requests
        assert request.subject in request.prompt
        assert {probe.answer for probe in request.locality} == {request.target_old}


def test_a_case_may_be_a_number():
    assert read_one("plain", case=7).case == "7"


def test_a_langfuse_item_has_the_wrong_answer_beside_the_right_one():
    request = read_one("langfuse")
    assert str(request.prompt) == f"user: {CAPITAL}"
    assert (request.target_new, request.target_old) == ("Canberra", "Sydney")
    plain = read_record({"input": CAPITAL, "expected_output": "Canberra"})[0]
    assert (plain.prompt, plain.target_new) == (CAPITAL, "Canberra")
    deep = read_record({"input": {"body": {"question": CAPITAL}}, "expectedOutput": ["Canberra"]})
    assert deep[0].prompt == CAPITAL
    with pytest.raises(RequestError, match="no question"):
        read_one("langfuse", input={"a": 1, "b": 2})
    with pytest.raises(RequestError, match="no answer"):
        read_one("langfuse", expectedOutput={"score": 1})


def test_the_latest_text_that_was_not_cancelled_is_the_answer():
    request = read_one("label_studio")
    assert (request.prompt, request.target_new) == (CAPITAL, "Canberra")
    with pytest.raises(RequestError, match="nobody wrote"):
        read_one("label_studio", annotations=[{"result": []}])


def test_a_response_that_was_kept_is_the_answer():
    request = read_one("argilla")
    assert (request.prompt, request.target_new) == (CAPITAL, "Canberra")
    with pytest.raises(RequestError, match="nobody wrote"):
        read_one("argilla", responses={"rating": [{"value": 3}]})
