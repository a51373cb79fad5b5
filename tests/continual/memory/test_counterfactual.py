"""The counterfactual model is used by the store that names it, if it fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from continual.errors import ModelError
from continual.memory.recall import MemoryConfig, Recall
from continual.new_store import NewStore, init
from tests import tiny_language as language
from tests.tiny_language import CAPITALS, ask, capital
from tests.tiny_memories import about


@pytest.fixture
def plain(scope: object, knowing_model: Path, tmp_path: Path):
    """A store on a decoder that knows, and was never told anything."""
    with init(tmp_path / "store", NewStore(str(knowing_model))) as session:
        yield session


def test_a_store_answers_by_the_model_that_it_names(plain, reading_model):
    """The base cannot read; the counterfactual model that is named can."""
    record = about(20, CAPITALS[0])
    (failed,) = plain.apply([record], editor="serac")
    assert failed.outcomes[0].outcome == "failed"
    plain.edited.recall = Recall(plain.edited, MemoryConfig(counterfactual=str(reading_model)))
    (step,) = plain.apply([record], editor="serac")
    assert step.outcomes[0].outcome == "applied"
    assert plain.ask(ask(20, 2), tokens_max=1) == CAPITALS[0]
    assert plain.ask(ask(3), tokens_max=1) == capital(3)


def test_another_counterfactual_model_than_recorded_is_refused(plain, reading_model):
    config = MemoryConfig(counterfactual=str(reading_model), counterfactual_fingerprint="0" * 64)
    plain.edited.recall = Recall(plain.edited, config)
    with pytest.raises(ModelError, match="put the right one back"):
        plain.apply([about(20, CAPITALS[0])], editor="serac")


def test_one_with_other_tokens_is_refused(plain, tmp_path):
    model = language.save_decoder(tmp_path / "other")
    other = language.tokenizer()
    other.add_tokens(["Erewhon"])
    other.save_pretrained(model)
    plain.edited.recall = Recall(plain.edited, MemoryConfig(counterfactual=str(model)))
    with pytest.raises(ModelError, match="other tokens"):
        plain.apply([about(20, CAPITALS[0])], editor="serac")
