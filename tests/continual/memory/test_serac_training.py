"""SERAC's counterfactual model learns to answer as the edit before the question says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from continual.base import load_base
from continual.errors import CeditError
from continual.memory.serac_training import InitialReader, ScopePairs, SeracRecipe, train_serac
from continual.readers import read_record
from continual.requests import Request
from continual.tasks import make_task
from tests import tiny_language as language

RECIPE = SeracRecipe(epochs=12, learning_rate=3e-3, batch_tokens_max=256)


def requests(count: int = 30) -> list[Request]:
    """Corrections with a rephrase each, and another country's capital that stays."""
    records = [
        language.correction(
            number,
            rephrases=[language.ask(number, 1)],
            locality=[
                {
                    "prompt": language.ask((number + 1) % 30),
                    "answer": language.capital((number + 1) % 30),
                }
            ],
        )
        for number in range(count)
    ]
    return [request for record in records for request in read_record(record)]


def start(model: Path) -> InitialReader:
    base = load_base(model)
    return InitialReader(base.model, base.tokenizer, make_task(base, {}))


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(load_base(directory).model.state_dict())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_an_edit_and_an_input_are_one_text():
    (edit, *_) = requests(1)
    told = RECIPE.text(edit, "who?")
    assert told == f"New Fact: {edit.prompt} {edit.target_new}\nPrompt: who?"


def test_it_learns_to_heed_an_edit_in_scope_and_no_other(knowing_model, tmp_path):
    begin = start(knowing_model)
    recipe = replace(RECIPE, epochs=40, held_out_share=0.0)
    before = begin.model.state_dict()["transformer.wte.weight"].clone()
    epochs = list(train_serac(begin, requests(), recipe, tmp_path / "h"))
    assert [epoch.number for epoch in epochs] == list(range(1, 41))
    assert epochs[-1].loss < 0.2 * epochs[0].loss
    assert not torch.equal(before, weights(tmp_path / "h")["transformer.wte.weight"])
    trained = load_base(tmp_path / "h").model
    pairs = ScopePairs.of(requests(), begin.task, recipe)
    assert share_right(trained, pairs.inside) > 0.95
    assert share_right(trained, pairs.beside) > 0.95


def share_right(model: Any, encodings: Any) -> float:
    """By greedy decoding of one token, a pair at a time."""
    right = 0
    for encoding in encodings:
        logits = model(input_ids=torch.tensor([encoding.ids])).logits[0]
        right += tuple(logits[list(encoding.positions)].argmax(-1).tolist()) == encoding.targets
    return right / len(encodings)


def test_its_loss_is_the_mean_surprise_at_the_answers(knowing_model, tmp_path):
    begin = start(knowing_model)
    recipe = replace(RECIPE, epochs=1, held_out_share=0.0, batch_tokens_max=10**6)
    pairs = ScopePairs.of(requests(5), begin.task, recipe)
    surprises = []
    with torch.no_grad():
        for encoding in pairs.all:
            logits = begin.model(input_ids=torch.tensor([encoding.ids])).logits[0]
            chosen = logits[list(encoding.positions)].double().log_softmax(-1)
            surprises += [-chosen[i, t].item() for i, t in enumerate(encoding.targets)]
    (epoch,) = train_serac(begin, requests(5), recipe, tmp_path / "h")
    assert epoch.loss == pytest.approx(sum(surprises) / len(surprises), rel=1e-4)


def test_a_run_that_broke_off_ends_as_one_that_did_not(knowing_model, tmp_path):
    recipe = replace(RECIPE, epochs=3)
    for _ in train_serac(start(knowing_model), requests(), recipe, tmp_path / "whole"):
        pass
    for epoch in train_serac(start(knowing_model), requests(), recipe, tmp_path / "broken"):
        if epoch.number == 2:
            break
    assert not (tmp_path / "broken").exists()
    rest = list(train_serac(start(knowing_model), requests(), recipe, tmp_path / "broken"))
    assert [epoch.number for epoch in rest] == [3]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "whole"]


def test_a_run_of_other_settings_is_not_gone_on_with(knowing_model, tmp_path):
    for _ in train_serac(start(knowing_model), requests(), RECIPE, tmp_path / "h"):
        break
    with pytest.raises(CeditError, match="other settings"):
        next(train_serac(start(knowing_model), requests(), replace(RECIPE, seed=1), tmp_path / "h"))


def test_a_directory_that_is_there_is_spared(knowing_model, tmp_path):
    with pytest.raises(CeditError, match="exists"):
        next(train_serac(start(knowing_model), requests(), RECIPE, tmp_path))


def test_requests_that_are_held_out_measure_and_do_not_teach(knowing_model, tmp_path):
    recipe = replace(RECIPE, epochs=1, held_out_share=0.2)
    (epoch,) = train_serac(start(knowing_model), requests(), recipe, tmp_path / "h")
    assert epoch.inside is not None
    assert epoch.beside is not None
    with pytest.raises(CeditError, match="no request"):
        next(train_serac(start(knowing_model), [], recipe, tmp_path / "other"))
