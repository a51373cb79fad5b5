"""`cedit neurons`: facts in, neurons out, and everything that cannot be attributed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny_language as language
from tests.cli.conftest import Cedit, write_lines


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a decoder that knows thirty capitals."""
    folder = tmp_path_factory.mktemp("knowing")
    return language.save_decoder(folder, language.trained_decoder())


def record(country: int) -> dict[str, object]:
    rephrases = [language.ask(country, phrasing) for phrasing in (1, 2, 3)]
    return language.correction(country, language.capital(country), rephrases=rephrases)


def test_the_neurons_of_a_models_own_answer(cedit: Cedit, knowing: Path) -> None:
    ran = cedit("neurons", language.ask(3), "--model", str(knowing), "--json")
    found = ran.last
    assert (found["answer"], found["right"], found["prompts"]) == (language.capital(3), True, 1)
    assert found["neurons"][0]["score"] == max(n["score"] for n in found["neurons"])
    assert found["suppressed"] < found["probability"]
    shown = cedit("neurons", language.ask(3), "--model", str(knowing))
    assert "attribution" in shown.out and "in the weights" in shown.out and not shown.err


def test_a_file_of_facts_ends_in_its_relations(cedit: Cedit, knowing: Path, tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    write_lines(file, [record(country) for country in range(3)])
    ran = cedit("neurons", str(file), "--model", str(knowing), "--json")
    *facts, relation = ran.records
    assert [fact["prompts"] for fact in facts] == [4, 4, 4]
    assert all(fact["right"] for fact in facts)
    assert (relation["relation"], relation["facts"]) == ("capital", 3)
    assert relation["suppressed"] < 0
    assert "wrong" not in cedit("neurons", str(file), "--model", str(knowing)).out


def test_an_answer_that_the_model_does_not_give_is_warned_of(cedit: Cedit, knowing: Path) -> None:
    wrong = ("--answer", language.capital(4))
    ran = cedit("neurons", language.ask(3), *wrong, "--model", str(knowing))
    assert ran.code == 0 and "warning" in ran.err and language.capital(3) in ran.err


def test_a_revision_has_neurons_of_its_own(cedit: Cedit, store: Path) -> None:
    prompt = "The capital of Chile is"
    assert cedit("fix", prompt, "Rome", "--editor", "tpatcher").code == 0
    after = cedit("neurons", prompt, "--answer", " Rome", "--json").last
    before = cedit("neurons", prompt, "--answer", " Rome", "--at", "base", "--json").last
    assert after["right"] and not before["right"]
    assert after["probability"] > before["probability"]


@pytest.mark.parametrize(
    ("lines", "options", "code", "reason"),
    [
        ([], (), 1, "no facts"),
        ([{"prompt": "a", "target_new": "b"}], ("--relation", "capital"), 1, "it has none"),
        ([{"prompt": "a"}], (), 1, "target_new"),
        ([{"prompt": "a", "target_new": "b"}], ("--answer", "c"), 2, "belong to a PROMPT"),
    ],
)
def test_files_that_cannot_be_looked_at(
    cedit: Cedit,
    model: Path,
    tmp_path: Path,
    lines: list[dict[str, object]],
    options: tuple[str, ...],
    code: int,
    reason: str,
) -> None:
    file = tmp_path / "facts.jsonl"
    write_lines(file, lines)
    ran = cedit("neurons", str(file), "--model", str(model), *options)
    assert ran.code == code and reason in ran.err


def test_prompts_that_cannot_be_looked_at(cedit: Cedit, model: Path) -> None:
    asked = ("--model", str(model))
    assert cedit("neurons", " ", *asked).code == 2
    assert cedit("neurons", "a", "--relation", "capital", *asked).code == 2
    masked = cedit("neurons", "a [MASK]", "--task", "masked", *asked)
    assert masked.code == 1 and "MaskedLM" in masked.err


def test_a_relation_is_erased_at_head_and_comes_back(
    cedit: Cedit, knowing: Path, tmp_path: Path
) -> None:
    store, file = tmp_path / "store", tmp_path / "facts.jsonl"
    write_lines(file, [record(country) for country in range(3)])
    plain = ("--no-watch", "--no-calibration")
    assert cedit("init", str(store), "--model", str(knowing), *plain).code == 0
    on = ("--store", str(store))
    erased = cedit("neurons", str(file), "--erase", "capital", *on, "--json").last
    assert (erased["type"], erased["facts"]) == ("erase", 3)
    assert 0 < len(erased["neurons"]) <= 20 and erased["after"] < erased["before"]
    assert "erase" in cedit("log", *on).out
    assert "erased       capital" in cedit("show", "head", *on).out
    assert cedit("verify", *on).code == cedit("replay", *on).code == 0
    back = cedit("revert", "@1", *on, "--json").last
    assert (back["relation"], back["request"]) == ("capital", None)
    assert back["fingerprint"] == cedit("show", "base", *on, "--json").last["fingerprint"]
    assert "given back   capital" in cedit("show", "head", *on).out
    assert cedit("verify", *on).code == cedit("replay", *on).code == 0
    gone = cedit("revert", "@1", *on)
    assert gone.code == 2 and "has no part in the model" in gone.err
    base = cedit("neurons", str(file), "--at", "base", *on, "--json").records[0]
    assert cedit("rollback", "base", *on).code == 0
    again = cedit("neurons", str(file), *on, "--json").records[0]
    assert again["probability"] == base["probability"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--erase", "capital"), "FILE"),
        (("--erase", "capital", "--at", "base"), "head"),
        (("--erase", "capital", "--relation", "other"), "head"),
    ],
)
def test_erasing_needs_facts_and_head(
    cedit: Cedit, store: Path, options: tuple[str, ...], reason: str
) -> None:
    ran = cedit("neurons", "The capital of Chile is", *options)
    assert ran.code == 2 and reason in ran.err
