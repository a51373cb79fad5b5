"""Traces are those of a naive version with hooks, by every way of running and on every kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from continual.analysis.tracing import Tracer, TracingConfig
from continual.analysis.tracing.config import window_around
from continual.analysis.tracing.ends import EndRuns
from continual.analysis.tracing.facts import TracedFact
from continual.analysis.tracing.noise import drawn
from continual.analysis.tracing.runs import AnsweredSequence, WholePasses
from continual.anatomy import find_anatomy
from continual.base import PretrainedBase
from continual.model import EditedModel
from continual.passes.edit_site import settled
from continual.requests import Limits
from continual.tasks.causal import CausalTask
from tests import tiny_language, tiny_models
from tests.continual.analysis.naive_tracing import Naive

BLOCKS = 4
IN_PARTS = ["gpt2", "llama", "gpt-neox", "gptj", "mistral"]
WHOLE = ["gemma2"]
IDS = (5, 9, 14, 22, 31, 40, 12, 33)
SUBJECT = (2, 3)
CONFIG = TracingConfig(draws=3, window=2, severed=True, total_effect_min=-1.0)
SIGMA = 0.3


def fact(answer: tuple[int, ...] = (12, 33), subject: tuple[int, ...] = SUBJECT) -> TracedFact:
    """A prompt of six tokens with an answer of two."""
    prompt = IDS[:6]
    ids = (*prompt, *answer[:-1])
    places = tuple(range(5, 5 + len(answer)))
    sequence = AnsweredSequence(ids, subject, places, answer)
    texts = tuple(f"t{token}" for token in prompt)
    return TracedFact("a prompt", "a subject", "an answer", sequence, texts, subject)


@contextmanager
def tracing(name: str, config: TracingConfig = CONFIG, **options: Any) -> Iterator[Tracer]:
    """A tracer of a tiny model of four blocks."""
    tokenizer = tiny_language.tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_models, "BLOCKS", BLOCKS)
        model = tiny_models.tiny_model(name)
    base = PretrainedBase(model, tokenizer, settled(model, find_anatomy(model)), "0" * 64)
    task = CausalTask.of(base, {}, Limits())
    with EditedModel(base) as edited:
        yield Tracer(edited, task, config, **options)


def expected(tracer: Tracer, name: str, kind: str, token: int, block: int) -> torch.Tensor:
    """The naive version's log-probabilities [1 + S, A] with one place restored."""
    traced = fact()
    noise = drawn(tracer.model, traced, CONFIG.draws, CONFIG.seed, CONFIG.noise * SIGMA)
    naive = Naive(tracer.edited.model, name, BLOCKS)
    restored, held = [("state", token, block)], []
    if kind in ("ffn", "attention"):
        restored = [(kind, token, b) for b in range(*window_around(block, 2, BLOCKS))]
    elif kind != "state":
        held = [(kind.removeprefix("state without "), token, b) for b in range(block + 1, BLOCKS)]
    answer = traced.sequence.positions, traced.sequence.targets
    return naive.logs(traced.sequence.ids, SUBJECT, noise, answer, restored, held)


@pytest.mark.parametrize("name", [*IN_PARTS, *WHOLE])
@pytest.mark.parametrize("in_parts", [True, False])
def test_every_place_is_that_of_the_naive_version(name: str, in_parts: bool) -> None:
    with tracing(name, in_parts=in_parts) as tracer:
        assert tracer.way == ("in parts" if in_parts and name in IN_PARTS else "whole passes")
        found = tracer.trace(fact(), SIGMA)
        assert {m.kind for m in found.maps} == {
            "state",
            "ffn",
            "attention",
            "state without ffn",
            "state without attention",
        }
        for found_map in found.maps:
            for token in range(6):
                for block in range(BLOCKS):
                    logs = expected(tracer, name, found_map.kind, token, block)
                    assert found.clean.probability == pytest.approx(
                        float(logs[0, 0].exp()), abs=1e-5
                    )
                    place = found_map.probability[token][block]
                    assert place == pytest.approx(float(logs[1:, 0].exp().mean()), abs=1e-5)
                    place = found_map.log_probability[token][block]
                    assert place == pytest.approx(float(logs[1:].mean()), abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_tokens_before_the_subject_have_no_effect_at_all(name: str) -> None:
    with tracing(name) as tracer:
        found = tracer.trace(fact(), SIGMA)
    assert found.total_effect != 0
    for found_map in found.maps:
        for token in range(SUBJECT[0]):
            assert set(found_map.probability[token]) == {found.corrupted.probability}
        if found_map.kind.startswith("state"):
            last = [row[-1] for row in found_map.probability]
            assert set(last[:-1]) == {found.corrupted.probability}
            assert last[-1] == found.clean.probability


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox", "gemma2"])
def test_without_noise_nothing_has_an_effect(name: str) -> None:
    with tracing(name) as tracer:
        found = tracer.trace(fact(), 0.0)
    assert found.corrupted.probability == pytest.approx(found.clean.probability, abs=1e-6)
    for found_map in found.maps:
        for row in found_map.probability:
            assert row == pytest.approx([found.clean.probability] * BLOCKS, abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox", "gemma2"])
@pytest.mark.parametrize("ways", [EndRuns, WholePasses])
def test_restoring_all_that_differs_gives_the_clean_run(name: str, ways: Any) -> None:
    if name in WHOLE and ways is EndRuns:
        pytest.skip("its attention cannot be run in parts")
    with tracing(name, in_parts=ways is EndRuns) as tracer:
        traced = fact()
        noise = drawn(tracer.model, traced, 3, 1, 1.0)
        with tracer._ready():
            runs = tracer._runner.record(traced.sequence, noise)
            clean = runs.scores.logs[:1].expand(3, -1)
            assert (runs.scores.logs[1:] - clean).abs().max() > 1e-2
            at_embedding = tracer._runner.states(runs, [SUBJECT], -1)[0]
            torch.testing.assert_close(at_embedding, clean, atol=1e-5, rtol=0)
            everything = tuple(range(len(traced.sequence.ids)))
            for block in range(BLOCKS):
                found = tracer._runner.states(runs, [everything], block)[0]
                torch.testing.assert_close(found, clean, atol=1e-5, rtol=0)


def test_an_output_that_holds_the_residual_sum_is_not_restored_with_it() -> None:
    """BLOOM's attention and FFN add the sum inside their modules."""
    import transformers as hf

    from continual.analysis.tracing.modules import RestorableModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = hf.BloomConfig(vocab_size=64, hidden_size=16, n_layer=3, n_head=4)
        model = hf.BloomForCausalLM(config).eval()
    found = RestorableModel.of(model, find_anatomy(model))
    names = {module: path for path, module in model.named_modules()}
    assert [names[m] for m in found.modules["attention"]] == [
        f"transformer.h.{i}.self_attention.dense" for i in range(3)
    ]
    assert [names[m] for m in found.modules["ffn"]] == [
        f"transformer.h.{i}.mlp.dense_4h_to_h" for i in range(3)
    ]


@pytest.mark.parametrize(("name", "kinds"), [("mixtral", 2), ("mamba2", 1), ("jamba", 1)])
def test_kinds_that_a_model_has_no_modules_of_are_left_out(name: str, kinds: int) -> None:
    with tracing(name, TracingConfig(draws=2)) as tracer:
        assert len(tracer.kinds) == kinds
        found = tracer.trace(fact(), SIGMA)
    assert [len(m.probability) for m in found.maps] == [6] * kinds


def test_a_second_seed_says_how_sure_a_peak_is() -> None:
    with tracing("gpt2") as tracer:
        found = tracer.trace(fact(), SIGMA)
        other = TracingConfig(draws=3, window=2, severed=True, seed=2)
        tracer.config = other
        again = tracer.trace(fact(), SIGMA)
    assert found.second is not None
    assert found.second.corrupted == again.corrupted
    for found_map in found.maps:
        token, block = found_map.peak()
        same = again.map(found_map.kind)
        assert same is not None
        assert found.second.peaks[found_map.kind] == pytest.approx(
            same.probability[token][block], abs=1e-6
        )
