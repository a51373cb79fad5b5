"""The subject's tokens, whatever the tokenizer does; sets of facts, averages and the cache."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from continual.analysis.tracing import NotTraceable, Tracer, TracingConfig
from continual.analysis.tracing.averages import averaged, group_effects
from continual.analysis.tracing.config import window_around, windows_by_start
from continual.analysis.tracing.facts import SubjectAbsent, mentioned, overlapping
from continual.analysis.tracing.results import (
    AFTER,
    END,
    FIRST,
    FURTHER,
    LAST,
    MIDDLE,
    TRACED,
    UNKNOWN,
    WEAK,
    FactTrace,
)
from continual.analysis.tracing.sets import TraceCache, history_ids, read_set, traces_of
from continual.errors import ModelError
from continual.requests import Request
from continual.session import Session
from continual.tasks import PromptText
from tests import tiny_language as language
from tests.continual.conftest import Make

CONFIG = TracingConfig(draws=4, total_effect_min=0.01)


def bytes_tokenizer() -> Any:
    """One token for each byte, so that a letter outside of ASCII is several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class Slow:
    """A tokenizer without offsets: a token for each word, with the blank before it."""

    is_fast = False
    all_special_ids = (0,)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        pieces = text.replace(" ", "\0 ").split("\0")
        return {"input_ids": [hash(piece) for piece in pieces if piece] + [0]}


def test_a_letter_of_several_tokens_is_covered_by_all_of_them() -> None:
    text = "Wo ist Zürich heute"
    found = overlapping(bytes_tokenizer(), PromptText(text, is_whole=False), (7, 13))
    data = text.encode()
    begin = data.index("Zürich".encode())
    assert found == tuple(range(begin, begin + len("Zürich".encode())))
    assert len(found) == 7


def test_a_subject_that_is_named_twice_is_found_at_both_places() -> None:
    text = "Bonn, I say Bonn, is"
    found = mentioned(bytes_tokenizer(), PromptText(text, is_whole=False), text, "Bonn")
    assert found == [(0, 1, 2, 3), (12, 13, 14, 15)]


@pytest.mark.parametrize("make", [Slow, bytes_tokenizer])
def test_a_subject_is_found_without_offsets_too(make: Any) -> None:
    found = overlapping(make(), PromptText("the seat of Old Bonn is", is_whole=False), (12, 20))
    expected = {Slow: (3, 4), bytes_tokenizer: tuple(range(12, 20))}
    assert found == expected[make]


@pytest.mark.parametrize("subject", ["", "  ", "Rome", "badar"])
def test_a_subject_that_is_not_in_the_prompt_is_named_in_the_error(
    knowing: Session, subject: str
) -> None:
    tracer = Tracer(knowing.edited, knowing.task, CONFIG)
    with pytest.raises(SubjectAbsent, match="--subject"):
        tracer.fact(language.ask(0), subject)


def test_windows_are_cut_off_at_both_ends_and_share_their_beginnings() -> None:
    assert [window_around(block, 10, 48) for block in (0, 20, 47)] == [(0, 5), (15, 25), (42, 48)]
    assert [window_around(block, 3, 5) for block in range(5)] == [
        (0, 2),
        (0, 3),
        (1, 4),
        (2, 5),
        (3, 5),
    ]
    assert windows_by_start(range(5), 3, 5) == {0: [2, 3], 1: [4], 2: [5], 3: [5]}
    assert TracingConfig().window_of(48) == 10
    assert TracingConfig().window_of(24) == 5
    assert TracingConfig(every=3).blocks_of(8) == (1, 4, 7)


def requests(count: int = 6) -> list[Request]:
    """Facts that the trained decoder knows, and one that it does not."""
    known = [language.correction(i, language.capital(i)) for i in range(count)]
    return [Request.from_json(record) for record in [*known, language.correction(count)]]


def test_a_set_is_averaged_without_the_facts_that_are_not_known(knowing: Session) -> None:
    tracer = Tracer(knowing.edited, knowing.task, CONFIG)
    facts = read_set(tracer, [*requests(), Request(prompt="who", target_new="x"), *requests()[:1]])
    assert facts.left_out == {"without a subject": 1}
    assert len(facts.token_ids) == len(facts.requests) == 8
    cache = TraceCache(knowing.store, tracer, tracer.deviation(facts.token_ids))
    traces = list(traces_of(cache, facts.requests))
    assert [trace.outcome for trace in traces] == [*[TRACED] * 6, UNKNOWN, TRACED]
    assert traces[6].corrupted is None
    assert traces[6].said == language.capital(6)
    found = averaged(traces)
    assert found.counts == {TRACED: 7, UNKNOWN: 1, WEAK: 0}
    traced = [trace for trace in traces if trace.outcome == TRACED]
    numbers = [group_effects(trace, "ffn", trace.groups()[LAST])[1] for trace in traced]
    mean = sum(numbers) / 7
    spread = math.sqrt(sum((number - mean) ** 2 for number in numbers) / 6 / 7)
    assert found.effects["ffn"][LAST].means[1].mean == pytest.approx(mean, abs=1e-6)
    assert found.effects["ffn"][LAST].means[1].half == pytest.approx(1.96 * spread, abs=1e-4)
    assert found.strongest("state") is not None


def test_a_trace_is_kept_and_read_back_as_it_was(
    knowing: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = Tracer(knowing.edited, knowing.task, CONFIG)
    cache = TraceCache(knowing.store, tracer, 0.5)
    made = list(traces_of(cache, requests(2)))
    assert [FactTrace.from_json(trace.to_json()) for trace in made] == made
    monkeypatch.setattr(Tracer, "trace", None)
    assert list(traces_of(cache, requests(2))) == made
    with pytest.raises(TypeError):
        list(traces_of(TraceCache(knowing.store, tracer, 0.25), requests(2)))


def test_own_answers_are_known_by_definition(knowing: Session) -> None:
    tracer = Tracer(knowing.edited, knowing.task, CONFIG)
    cache = TraceCache(knowing.store, tracer, 1.0)
    *_, last = traces_of(cache, requests(1), own_answers=True)
    assert last.is_known
    assert last.answer == language.capital(1)


def test_groups_of_tokens_do_not_overlap(knowing: Session) -> None:
    tracer = Tracer(knowing.edited, knowing.task, CONFIG)
    cases = {
        "the capital of Badar is": {LAST: (3,), END: (4,)},
        "the seat of government in Badar is": {FIRST: (1,), MIDDLE: (2, 3), LAST: (4,)},
        "people in Badar call their capital": {LAST: (2,), AFTER: (3,), FURTHER: (4,), END: (5,)},
        "the king of Badar": {LAST: (3,)},
        "Badar the king of Badar lives in": {LAST: (4,), AFTER: (5,), END: (6,)},
    }
    for prompt, expected in cases.items():
        subject = "seat of government in" if "seat" in prompt else "Badar"
        found = tracer.trace(tracer.fact(prompt, subject), 1.0).groups()
        if "seat" in prompt:
            expected = {**expected, AFTER: (5,), END: (6,)}
        assert {name: tokens for name, tokens in found.items() if tokens} == expected


def test_the_spread_of_a_single_prompts_noise_is_of_the_history_too(knowing: Session) -> None:
    tracer = Tracer(knowing.edited, knowing.task, CONFIG)
    assert history_ids(tracer, knowing.store, knowing.head) == []
    knowing.apply([language.correction(3)], editor="tpatcher")
    (token,) = history_ids(tracer, knowing.store, knowing.head)
    assert knowing.tokenizer.decode([token]) == language.COUNTRIES[3]


def test_an_edited_state_is_traced_with_its_edits(knowing: Session) -> None:
    record = language.correction(3)
    knowing.apply([record], editor="memit")
    tracer = Tracer(knowing.edited, knowing.task, CONFIG)
    fact = tracer.fact(record["prompt"], record["subject"])
    assert tracer.way == "in parts"
    assert fact.answer == record["target_new"]
    edited = tracer.trace(fact, 1.0)
    whole = Tracer(knowing.edited, knowing.task, CONFIG, in_parts=False).trace(fact, 1.0)
    assert near(edited, whole)
    knowing.stand_at("base")
    base = Tracer(knowing.edited, knowing.task, CONFIG)
    assert base.fact(record["prompt"], record["subject"]).answer == language.capital(3)


def test_neurons_are_there_in_every_run(knowing: Session) -> None:
    record = language.correction(3)
    knowing.apply([record], editor="tpatcher")
    tracer = Tracer(knowing.edited, knowing.task, CONFIG)
    assert tracer.way == "whole passes"
    assert "beside the weights" in tracer.why_whole
    found = tracer.trace(tracer.fact(record["prompt"], record["subject"]), 1.0)
    assert found.answer == record["target_new"]
    assert found.clean.probability > 0.5
    state = found.map("state")
    assert state is not None
    assert state.probability[-1][-1] == found.clean.probability


def near(first: FactTrace, second: FactTrace) -> bool:
    """Whether two traces have the same maps, up to rounding."""
    pairs = [
        (a, b)
        for one, other in zip(first.maps, second.maps, strict=True)
        for row, other_row in zip(one.probability, other.probability, strict=True)
        for a, b in zip(row, other_row, strict=True)
    ]
    return all(abs(a - b) < 1e-5 for a, b in pairs) and first.clean == second.clean


@pytest.mark.parametrize("task", ["seq2seq", "classification"])
def test_other_tasks_are_refused_with_the_reason(
    made: Make, models: dict[str, Path], task: str
) -> None:
    session = made(models[task], task={"name": task})
    with pytest.raises(NotTraceable, match=f"the {task} task"):
        Tracer(session.edited, session.task, CONFIG)


def test_probabilities_that_are_no_numbers_are_an_error(knowing: Session) -> None:
    tracer = Tracer(knowing.edited, knowing.task, CONFIG)
    fact = tracer.fact(language.ask(0), language.COUNTRIES[0])
    weight = knowing.edited.anatomy.down_module(knowing.edited.model, 1).weight
    before = weight.detach().clone()
    weight.data.fill_(math.nan)
    try:
        with pytest.raises(ModelError, match="no numbers"):
            tracer.trace(fact, 1.0)
    finally:
        weight.data.copy_(before)
