"""The counterfactual model: trained to read, saved whole, and used by the store that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from continual.errors import CeditError, ModelError
from continual.memory import counterfactual
from continual.memory.contexts import FORM
from continual.memory.counterfactual import CounterfactualRun, CounterfactualTraining, Lessons
from continual.memory.recall import MemoryConfig, Recall
from continual.requests import Request
from continual.session import NewStore, Session, init
from tests import tiny_language as language
from tests.tiny_language import CAPITALS, ask, capital
from tests.tiny_memories import about

TRAINING = CounterfactualTraining(epochs=2, learning_rate=1e-3, tokens_per_batch=512)


@pytest.fixture
def plain(scope: object, knowing_model: Path, tmp_path: Path):
    """A store on a decoder that knows, and was never told anything."""
    with init(tmp_path / "store", NewStore(str(knowing_model))) as session:
        yield session


def requests() -> list[Request]:
    return [Request.from_json(about(c, CAPITALS[(c + 5) % 40])) for c in range(40)]


def run(session: Session, start: Path, training: CounterfactualTraining = TRAINING):
    lessons = Lessons.of(requests(), session.site, FORM)
    return CounterfactualRun(session.site, lessons, training, start)


def test_lessons_are_told_facts_and_neighbours_and_held_out_rephrases_are_none(plain):
    lessons = Lessons.of(requests()[:1], plain.site, FORM)
    read = [plain.tokenizer.decode(encoding.ids) for encoding in lessons.learned]
    assert len(read) == 4 and all(text.count(ask(0)) for text in read)
    assert read[0].endswith(ask(0)) and read[1].endswith(ask(0, 1))
    answered = [plain.tokenizer.decode(encoding.targets) for encoding in lessons.learned]
    assert answered == [CAPITALS[5], CAPITALS[5], capital(1), capital(1)]
    (measured,) = lessons.measured
    assert plain.tokenizer.decode(measured.ids).endswith(ask(0, 2))


def test_training_lowers_the_loss_the_same_way_each_time(plain, knowing_model, tmp_path):
    ends = []
    for name in ("one", "two"):
        training = run(plain, knowing_model)
        epochs = list(training.steps())
        assert epochs[-1].step == epochs[-1].steps
        assert epochs[-1].loss < epochs[0].loss
        ends.append(training.save(tmp_path / name))
    assert ends[0].fingerprint == ends[1].fingerprint
    assert ends[0].right_before is not None and ends[0].lessons == 160


def test_a_training_that_breaks_off_leaves_no_folder(plain, knowing_model, tmp_path, monkeypatch):
    training = run(plain, knowing_model)
    next(training.steps())
    monkeypatch.setattr(plain.tokenizer, "save_pretrained", None)
    with pytest.raises(TypeError):
        training.save(tmp_path / "models")
    assert not [p for p in tmp_path.iterdir() if "models" in p.name]


def test_the_base_is_as_it_was_and_answers_still_come_from_it(plain, knowing_model):
    before = {name: tensor.clone() for name, tensor in plain.model.state_dict().items()}
    list(run(plain, knowing_model).steps())
    after = plain.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_folder_that_is_taken_is_refused(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for out in (tmp_path / "taken", tmp_path / "nowhere" / "out"):
        with pytest.raises(CeditError, match="name another"):
            counterfactual.require_vacant(out)


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


def test_a_start_with_other_tokens_is_refused(plain, tmp_path):
    model = language.save_decoder(tmp_path / "other")
    other = language.tokenizer()
    other.add_tokens(["Erewhon"])
    other.save_pretrained(model)
    with pytest.raises(ModelError, match="other tokens"):
        run(plain, model)
