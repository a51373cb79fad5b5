"""What is read in front of an input: forms, and IKE's demonstrations."""

from __future__ import annotations

from pathlib import Path

import pytest

from continual.editors.ike import Ike, IkeConfig
from continual.editors.serac import SeracConfig
from continual.errors import CeditError
from continual.memory.contexts import FORM, context, demonstrations
from continual.requests import Request
from tests.continual.conftest import reopened, write_lines
from tests.tiny_language import CAPITALS, ask, capital
from tests.tiny_memories import about


def test_a_form_is_filled_in_up_to_the_input():
    assert context(FORM, "the capital is", "Rome") == "New Fact: the capital is Rome\nPrompt: "


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("New Fact: {prompt} {target}", "does not end with"),
        ("{input} New Fact: {prompt} {target} {input}", "does not end with"),
        ("{fact} {input}", "cannot be filled in"),
        ("{prompt {input}", "cannot be filled in"),
    ],
)
def test_a_form_that_cannot_be_used_is_refused_with_its_table(form, said):
    for config in (SeracConfig, IkeConfig):
        with pytest.raises(CeditError, match=said):
            config.of({"form": form})


@pytest.mark.parametrize("config", [SeracConfig, IkeConfig])
def test_an_unknown_setting_is_named(config):
    with pytest.raises(CeditError, match="fom"):
        config.of({"fom": FORM})


def test_demonstrations_copy_update_and_retain():
    shown = demonstrations(FORM, Request.from_json(about(20, CAPITALS[0])))
    fact = f"New Fact: {ask(20)} {CAPITALS[0]}\nPrompt: "
    assert shown["copy"] == [f"{fact}{ask(20)} {CAPITALS[0]}"]
    assert shown["update"] == [f"{fact}{ask(20, 1)} {CAPITALS[0]}"]
    assert shown["retain"][0] == f"{fact}{ask(21)} {capital(21)}"


def test_the_kinds_share_the_count_as_published():
    assert IkeConfig().kinds(16) == {"copy": 2, "update": 6, "retain": 8}
    assert sum(IkeConfig().kinds(5).values()) == 5
    with pytest.raises(CeditError, match="at least 1"):
        IkeConfig(copy=0, update=0, retain=0)


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "shown.jsonl", [about(c, CAPITALS[c]) for c in range(20, 40)])


def context_of(session, table: dict, attempt: int = 0) -> str:
    """The context of the record that IKE makes, whether it is read rightly or not."""
    editor = Ike(IkeConfig.of(table))
    request = Request.from_json(about(23, CAPITALS[0]))
    edit = type("Edit", (), {"request": request})
    answers = type("Answers", (), {"recall": session.edited.recall})
    (found,) = editor.contexts([edit], answers, attempt)
    return found


def test_the_nearest_demonstrations_stand_last_and_none_is_of_the_fact_itself(reader, shown):
    found = context_of(reader, {"demonstrations": str(shown), "count": 8, "tokens_max": 10_000})
    parts = found.split("\n\n")
    assert len(parts) == 9 and parts[-1] == f"New Fact: {ask(23)} {CAPITALS[0]}\nPrompt: "
    assert not any(ask(23).split()[-2] in part.split("\n")[0] for part in parts[:-1])
    scope = reader.edited.recall.scope
    near = scope.queries([ask(23)])
    facts = [part.split("\n")[0].removeprefix("New Fact: ").rsplit(" ", 1)[0] for part in parts]
    copies = [f for f, p in zip(facts, parts, strict=True) if f"Prompt: {f} " in p]
    others = [ask(c) for c in range(20, 40) if c != 23]
    best = max(others, key=lambda text: float(near.embeddings[0, 0] @ scope._embed([text])[0]))
    assert copies == [best]


def test_a_budget_drops_demonstrations_and_never_the_fact(reader, shown):
    table = {"demonstrations": str(shown), "count": 8}
    count = len(reader.tokenizer(context_of(reader, {**table, "tokens_max": 10_000}))["input_ids"])
    less = context_of(reader, {**table, "tokens_max": count - 1})
    assert len(less.split("\n\n")) == 8
    none = context_of(reader, {**table, "tokens_max": 1})
    assert none == context(FORM, ask(23), CAPITALS[0])


def test_each_attempt_has_half_as_many_demonstrations_and_the_last_none(reader, shown):
    table = {"demonstrations": str(shown), "count": 5, "tokens_max": 10_000}
    attempts = Ike(IkeConfig.of(table)).attempts
    shares = [context_of(reader, table, attempt).count("\n\n") for attempt in range(attempts)]
    assert shares == [5, 2, 1, 0]
    assert Ike(IkeConfig()).attempts == 1


def test_what_demonstrations_lead_astray_is_read_without_them(reader, shown):
    """The reader was never shown a demonstration."""
    table = {"demonstrations": str(shown), "count": 1, "copy": 1, "update": 0, "retain": 0}
    offered = [Request.from_json(about(c, CAPITALS[3 * c % 40])) for c in range(20, 40)]
    settings = reader.settings(chain=("ike",), editors={"ike": table})
    outcomes = [o for step in reader.apply_requests(offered, settings) for o in step.outcomes]
    assert {o.attempt for o in outcomes if o.outcome == "applied"} == {1, 2}
    kept = {r.id: r for r in offered}
    bank = reader.edited.memory
    shown_of = {bank.records[p].id: bank.readings[p].context.count("\n\n") for p in bank.places()}
    for outcome in outcomes:
        if outcome.outcome == "applied":
            assert shown_of[outcome.id] == 2 - outcome.attempt
            request = kept[outcome.id]
            assert reader.ask(request.prompt, tokens_max=1) == request.target_new


def test_demonstrations_are_kept_with_the_edit(reader, shown):
    table = {"demonstrations": str(shown), "count": 1, "copy": 1, "update": 0, "retain": 0}
    offered = [Request.from_json(about(c, CAPITALS[3 * c % 40])) for c in range(20, 40)]
    settings = reader.settings(chain=("ike",), editors={"ike": table})
    steps = list(reader.apply_requests(offered, settings))
    applied = {o.id for step in steps for o in step.outcomes if o.outcome == "applied"}
    requests = [request for request in offered if request.id in applied]
    assert len(requests) >= 3
    shown.unlink()  # a history is whole without it
    again = reopened(reader)
    try:
        kept = [reading.context for reading in again.edited.memory.readings]
        assert {context.count("New Fact:") for context in kept} == {1, 2}
        assert len(kept) == len(requests)
        for request in requests:
            assert again.ask(request.prompt, tokens_max=1) == request.target_new
    finally:
        again.close()
