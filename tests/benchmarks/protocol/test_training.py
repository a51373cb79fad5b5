"""Initial models: they learn what they are taught, and are kept by what they were taught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import transformers as hf

from benchmarks.protocol import networks, training
from benchmarks.protocol.networks import NetworkShape
from benchmarks.protocol.training import TrainingRecipe, accuracy, digest, trained_model

PAIRS = [(f"What is the colour of {a} {b}?", f"{a} is {b}") for a in "abcd" for b in ("x", "yz")]
CLAIMS = [(text, "SUPPORTS" if "x" in text else "REFUTES") for text, _ in PAIRS]
RECIPE = TrainingRecipe(epochs=400, warmup_steps=20, learning_rate=2e-3)
LOADERS = {
    "bert": hf.AutoModelForSequenceClassification,
    "bart": hf.AutoModelForSeq2SeqLM,
    "t5": hf.AutoModelForSeq2SeqLM,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, made in networks.ARCHITECTURES.items():
        tiny = replace(made, shape=NetworkShape(2, 32, 2, 64, 400))
        monkeypatch.setitem(networks.ARCHITECTURES, name, tiny)


@pytest.mark.parametrize("architecture", LOADERS)
def test_a_model_learns_its_answers_and_is_a_plain_directory(
    architecture: str, tmp_path: Path
) -> None:
    pairs = CLAIMS if architecture == "bert" else PAIRS
    directory = trained_model(architecture, pairs, RECIPE, tmp_path)
    model = LOADERS[architecture].from_pretrained(directory, use_safetensors=True)
    tokenizer = hf.AutoTokenizer.from_pretrained(directory)
    assert accuracy(model, tokenizer, pairs) == 1.0
    assert accuracy(model, tokenizer, [(text, pairs[0][1]) for text, _ in pairs]) < 1.0


def test_a_trained_model_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, epochs=1)
    first = trained_model("bart", PAIRS, recipe, tmp_path)
    monkeypatch.delattr(training, "NetworkTraining")
    assert trained_model("bart", PAIRS, recipe, tmp_path) == first


def test_another_seed_or_another_pair_is_another_model() -> None:
    names = {
        digest("bart", PAIRS, RECIPE),
        digest("bart", PAIRS, replace(RECIPE, seed=1)),
        digest("bart", PAIRS[1:], RECIPE),
        digest("t5", PAIRS, RECIPE),
        digest("bart", PAIRS, RECIPE),
    }
    # bart and t5 have one shape here, and are told apart by the folder's name
    assert len(names) == 3


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_a_pretrained_model_is_trained_on(architecture: str, tmp_path: Path) -> None:
    pairs = CLAIMS if architecture == "bert" else PAIRS
    start = trained_model(architecture, pairs, RECIPE, tmp_path)
    still = replace(RECIPE, epochs=1, learning_rate=0.0)
    directory = trained_model(architecture, pairs, still, tmp_path, start=start)
    model = LOADERS[architecture].from_pretrained(directory)
    assert directory != start
    assert accuracy(model, hf.AutoTokenizer.from_pretrained(directory), pairs) == 1.0
