"""The three tasks of the protocol: the examples, splits and initial model of each.

`fever` and `zsre` train their initial model here, on D_train in all its wordings: a new one, or a
pretrained one. `counterfact` uses the model of `benchmarks.counterfact_model`. A model directory
takes the place of any of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.counterfact import FACTS, probe_sets
from benchmarks.counterfact_model import load_knowledge, recipe
from benchmarks.counterfact_model import trained_model as trained_decoder
from benchmarks.protocol import claims, questions
from benchmarks.protocol.splits import AnsweredInput, ExampleSplits, SplitSizes
from benchmarks.protocol.training import TextAnswer, TrainingRecipe, accuracy, trained_model
from continual.embedded import ATLAS
from continual.model_files import directory_fingerprint, model_directory

CLAIM_SIZES = SplitSizes(validation=400, edit=1500, test=600)
QUESTION_SIZES = SplitSizes(validation=200, edit=900, test=800)
PARAREL_FACTS = 3000
WATCHED = 500  # examples of D_train that are watched during training
RECIPES = {
    "bert": TrainingRecipe(epochs=4, seconds_max=900, learning_rate=3e-4, weight_decay=0.1),
    "bart": TrainingRecipe(epochs=40, seconds_max=900),
    "t5": TrainingRecipe(epochs=20, seconds_max=900, learning_rate=2e-3),
}
FINE_TUNING = TrainingRecipe(epochs=5, tokens_per_batch=2048, learning_rate=5e-5, warmup_steps=200)


@dataclass(frozen=True)
class TaskSetting:
    """One task on one initial model."""

    task: str
    architecture: str
    engine_task: Mapping[str, Any]  # the store's [task] table
    splits: ExampleSplits
    model: Path

    @property
    def digest(self) -> str:
        """A digest of the splits and the model."""
        content: list[Any] = [directory_fingerprint(self.model), dict(self.engine_task)]
        for part in (self.splits.train, self.splits.edit, self.splits.test):
            content.append([[e.prompt, e.answer, *e.rephrases] for e in part])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SettingChoices:
    """The command's choices for a setting."""

    architecture: str
    data: Path  # the folder of the datasets
    cache: Path  # where trained models are kept
    seed: int
    model: Path | None = None  # an initial model that is there
    start: Path | None = None  # a pretrained model, to be fine-tuned on D_train
    epochs: int | None = None  # of fine-tuning, in the place of the recipe's


def fever(asked: SettingChoices) -> TaskSetting:
    """Return a classifier of claims, and claims that it was not trained on."""
    splits = ExampleSplits.of(claims.load(asked.data), CLAIM_SIZES, asked.seed)
    return TaskSetting(
        "fever",
        asked.architecture,
        {"name": "classification"},
        splits,
        _given(asked) or _trained_on(splits, asked),
    )


def zsre(asked: SettingChoices) -> TaskSetting:
    """Return a question answerer, and questions about facts that it was not trained on."""
    examples = questions.load(asked.data, PARAREL_FACTS, asked.seed)
    splits = ExampleSplits.of(examples, QUESTION_SIZES, asked.seed)
    return TaskSetting(
        "zsre",
        asked.architecture,
        {"name": "seq2seq"},
        splits,
        _given(asked) or _trained_on(splits, asked),
    )


def counterfact(asked: SettingChoices) -> TaskSetting:
    """Return a decoder that knows CounterFact's true facts, and the counterfactual ones.

    Probes are facts that are never edited: D_train in trained wordings, D_test in others.
    """
    knowledge = load_knowledge(asked.data, FACTS)
    probes = probe_sets(knowledge)
    splits = ExampleSplits(
        train=tuple(AnsweredInput(p.prompt, p.answer) for p in probes["train"]),
        validation=(),
        edit=tuple(
            AnsweredInput(r.prompt, r.target_new, r.held_out_rephrases) for r in knowledge.requests
        ),
        test=tuple(AnsweredInput(p.prompt, p.answer) for p in probes["test"]),
    )
    model = _given(asked) or trained_decoder(
        knowledge, recipe(minutes=14, epochs=60), asked.data, asked.cache
    )
    task = {"name": "causal"} if asked.model else {"name": "causal", **ATLAS.task}
    return TaskSetting("counterfact", asked.architecture, task, splits, model)


TASKS: Mapping[str, Callable[[SettingChoices], TaskSetting]] = {
    "fever": fever,
    "zsre": zsre,
    "counterfact": counterfact,
}
ARCHITECTURES = {"fever": ("bert",), "zsre": ("bart", "t5"), "counterfact": ("gpt2",)}
"""The architectures of each task; the first is the default."""


def _trained_on(splits: ExampleSplits, asked: SettingChoices) -> Path:
    """Return a model trained on D_train in all its wordings."""
    pairs = [pair for example in splits.train for pair in _pairs(example)]
    start = None if asked.start is None else model_directory(asked.start)
    made_by = replace(FINE_TUNING if start else RECIPES[asked.architecture], seed=asked.seed)
    if asked.epochs is not None:
        made_by = replace(made_by, epochs=asked.epochs)
    watch = partial(_watched, splits)
    return trained_model(asked.architecture, pairs, made_by, asked.cache, watch, start)


def _pairs(example: AnsweredInput) -> list[TextAnswer]:
    return [(wording, example.answer) for wording in example.wordings]


def _watched(splits: ExampleSplits, model: Any, tokenizer: Any) -> str:
    def share(examples: Sequence[AnsweredInput]) -> str:
        return format(accuracy(model, tokenizer, [(e.prompt, e.answer) for e in examples]), ".3f")

    return f"train {share(splits.train[:WATCHED])}, validation {share(splits.validation)}"


def _given(asked: SettingChoices) -> Path | None:
    """Return the model directory that was named. Raises ModelError if it is none."""
    return None if asked.model is None else model_directory(asked.model)


def note_of(setting: TaskSetting) -> None:
    """Report which model is used."""
    tables.note(f"{setting.task} on the {setting.architecture} model in {setting.model}")
