"""Knowledge neurons: attributions against slow references, thresholds, and operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from continual import hooks
from continual.analysis.neurons import (
    FfnNeuron,
    GoldToken,
    MaskedPrompts,
    NeuronThresholds,
    PassMaker,
    attribute,
    gold_tokens,
)
from continual.analysis.neurons import passes as ways
from continual.analysis.neurons.choosing import most_frequent, neurons_above, of_relation, shared_by
from continual.analysis.neurons.finding import (
    FactNeurons,
    NeuronEffects,
    NeuronFinder,
    PromptedFact,
)
from continual.analysis.neurons.operations import (
    in_weights,
    probability,
    scaled_values,
    token_probabilities,
)
from continual.analysis.neurons.relations import relations_of
from continual.anatomy import find_anatomy
from continual.errors import CeditError, ModelError, RequestError
from continual.passes.edit_site import settled
from continual.session import Session
from tests import tiny_language as language
from tests.continual.conftest import Make
from tests.tiny_models import BLOCKS, FFN_WIDTH, tiny_model

IDS, SOURCE, TARGET = (7, 12, 20, 31, 9), (5, 9, 11, 8), 17
MODELS = {
    "gpt2": ways.EndPass,
    "gptj": ways.EndPass,
    "opt-post-norm": ways.EndPass,
    "llama": ways.EndPass,
    "mistral": ways.EndPass,
    "bert": ways.WholePass,
    "bart": ways.WholePass,
    "t5": ways.WholePass,
    "t5-gated": ways.WholePass,
    "gemma2": ways.FullPass,
}
"""Models, and how each is run: one for each form of FFN, attention and norm."""


def made(name: str) -> tuple[PassMaker, GoldToken]:
    """A model and a gold token: behind its text, or inside a text that an encoder sees whole."""
    model = tiny_model(name)
    passes = PassMaker(model, settled(model, find_anatomy(model)))
    source = SOURCE if model.config.is_encoder_decoder else ()
    return passes, GoldToken(IDS, 2 if name == "bert" else len(IDS) - 1, TARGET, source)


def slow(
    passes: PassMaker, gold: GoldToken, block: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The row of a block, and P(target) as a function of it: by full forwards, one at a time."""
    model, down = passes.model, passes.anatomy.down_module(passes.model, block)
    inputs = gold.inputs(torch.device("cpu"))

    def share(logits: Tensor) -> Tensor:
        return logits[0, gold.position].softmax(-1)[gold.target]

    with hooks.captured(down) as calls, torch.no_grad():
        model(**inputs)
    row = calls[0].input.reshape(-1, FFN_WIDTH)[gold.position]

    def of_row(replacement: Tensor) -> Tensor:
        def alter(state: Tensor) -> Tensor:
            rows = [*state.reshape(-1, FFN_WIDTH)]
            rows[gold.position] = replacement
            return torch.stack(rows).reshape(state.shape)

        with torch.enable_grad(), hooks.fed(down, alter):
            return share(model(**inputs).logits)

    return row, of_row


@pytest.mark.parametrize("name", MODELS)
def test_an_attribution_is_that_of_the_naive_loop(name: str) -> None:
    passes, gold = made(name)
    assert passes.way is MODELS[name]
    found = attribute(passes, [gold], steps=20)
    for block in range(BLOCKS):
        row, of_row = slow(passes, gold, block)
        gradient = torch.zeros(FFN_WIDTH)
        for step in range(20):
            scaled = (step / 20 * row).requires_grad_()
            gradient += torch.autograd.grad(of_row(scaled), scaled)[0]
        torch.testing.assert_close(found.scores[block], row / 20 * gradient, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(found.activations[block], row)
    assert found.probability == pytest.approx(float(of_row(row)), rel=1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gemma2"])
def test_attributions_of_a_block_sum_to_the_change_of_the_probability(name: str) -> None:
    """A norm of an FFN's output, as gemma2 has it, has no derivative at the zero row."""
    passes, gold = made(name)
    found = attribute(passes, [gold], steps=400)
    for block in range(BLOCKS):
        row, of_row = slow(passes, gold, block)
        change = float(of_row(row) - of_row(torch.zeros_like(row)))
        assert float(found.scores[block].sum()) == pytest.approx(change, abs=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_gradients_are_central_differences_at_every_step(name: str) -> None:
    passes, gold = made(name)
    passes.model.double()
    run = passes.read(gold)
    block, size = 1, 2e-3  # some norms are taken in float32 all the same
    row, of_row = slow(passes, gold, block)
    for scale in (0.0, 0.35, 0.95):
        gradients = run.gradients(torch.tensor([scale], dtype=torch.float64))[block]
        for place in range(0, FFN_WIDTH, 7):
            step = torch.zeros_like(row).index_fill_(0, torch.tensor(place), size)
            difference = of_row(scale * row + step) - of_row(scale * row - step)
            assert float(gradients[place]) == pytest.approx(
                float(difference) / (2 * size), rel=1e-2, abs=1e-5
            )


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "bart"])
def test_copies_and_blocks_are_the_same_together_as_one_by_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, gold = made(name)
    scales = torch.arange(6) / 6
    together = passes.read(gold).gradients(scales)
    monkeypatch.setattr(ways, "TOKENS_MAX", 1)  # a block at a time
    alone = [passes.read(gold).gradients(scale[None]) for scale in scales]
    torch.testing.assert_close(together, torch.stack(alone).sum(0), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_a_full_pass_and_one_in_parts_agree(name: str) -> None:
    passes, gold = made(name)
    whole = PassMaker(passes.model, passes.anatomy, has_gates=True)
    assert whole.way is ways.FullPass
    expected = attribute(whole, [gold]).scores
    torch.testing.assert_close(attribute(passes, [gold]).scores, expected, atol=1e-6, rtol=1e-4)


def test_an_answer_of_several_tokens_is_the_mean_over_them() -> None:
    passes, gold = made("gpt2")
    second = GoldToken((*IDS, TARGET), len(IDS), 23)
    both = attribute(passes, [gold, second])
    parts = [attribute(passes, [token]) for token in (gold, second)]
    torch.testing.assert_close(both.scores, (parts[0].scores + parts[1].scores) / 2)
    assert both.probability == pytest.approx(sum(part.probability for part in parts) / 2)


def test_a_model_without_ffns_is_refused() -> None:
    model = tiny_model("mixtral")
    with pytest.raises(ModelError, match="FFN"):
        PassMaker(model, settled(model, find_anatomy(model)))


def test_logits_that_are_not_finite_are_refused() -> None:
    passes, gold = made("gpt2")
    passes.model.lm_head.weight[3, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        attribute(passes, [gold])


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_out_of_range_is_refused(steps: int) -> None:
    passes, gold = made("gpt2")
    with pytest.raises(CeditError, match="1 to 1000"):
        attribute(passes, [gold], steps)


# -- the tokens of an answer


def test_gold_tokens_stand_behind_the_gold_tokens_before_them(knowing: Session) -> None:
    prompt, answer = language.ask(3), f"{language.capital(3)} {language.capital(4)}"
    tokens = gold_tokens(knowing.task, prompt, answer)
    encoding = knowing.task.encode(prompt, answer)
    assert [token.target for token in tokens] == list(encoding.targets[:2])
    assert tokens[1].ids == (*encoding.question.ids, encoding.targets[0])
    assert all(token.is_last for token in tokens)


def test_the_end_of_an_answer_is_no_gold_token(made: Make, models: dict[str, Any]) -> None:
    session = made(models["seq2seq"], task={"name": "seq2seq"})
    tokens = gold_tokens(session.task, language.ask(3), language.capital(3))
    assert len(tokens) == 1 and tokens[0].source


def test_a_classifier_is_refused(made: Make, models: dict[str, Any]) -> None:
    session = made(models["classification"], task={"name": "classification"})
    with pytest.raises(ModelError, match="classifier"):
        gold_tokens(session.task, language.ask(3), language.capital(3))
    with pytest.raises(ModelError, match="classifier"):
        NeuronFinder(session.edited, session.task)


class Words:
    """A tokenizer of words, with a mask."""

    mask_token, mask_token_id, unk_token_id = "[MASK]", 1, 0
    words = ("<unk>", "[MASK]", "Paris", "is", "the", "capital", "of", "New", "York", ".")

    def __call__(self, text: str) -> dict[str, list[int]]:
        parts = text.replace(".", " .").split()
        return {"input_ids": [self.words.index(p) if p in self.words else 0 for p in parts]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(self.words[i] for i in ids)


def test_a_masked_answer_of_several_tokens_has_masks_behind_the_gold_ones() -> None:
    first, second = MaskedPrompts(Words()).gold_tokens("[MASK] is the capital.", "New York")
    assert (first.ids, first.position, first.target) == ((1, 1, 3, 4, 5, 9), 0, 7)
    assert (second.ids, second.position, second.target) == ((7, 1, 3, 4, 5, 9), 1, 8)


@pytest.mark.parametrize(
    ("prompt", "answer", "reason"),
    [
        ("Paris is the capital.", "Paris", "0 times"),
        ("[MASK] is [MASK].", "Paris", "2 times"),
        ("[MASK] is the capital.", "Rome", "tokens"),
        ("[MASK] is the capital.", " ", "empty"),
        ("[MASK] is the capital of the.", "Paris", "shorten"),
    ],
)
def test_a_masked_prompt_that_cannot_be_answered_is_refused(
    prompt: str, answer: str, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        MaskedPrompts(Words(), tokens_max=6).gold_tokens(prompt, answer)


# -- thresholds


def neurons(*places: int) -> list[FfnNeuron]:
    return [FfnNeuron(0, place) for place in places]


def test_a_prompts_neurons_reach_a_share_of_the_maximum_over_all_blocks() -> None:
    scores = torch.tensor([[0.1, -3.0, 0.2], [1.0, 0.19, 0.5]])
    assert neurons_above(scores, 0.2) == [FfnNeuron(1, 0), FfnNeuron(1, 2), FfnNeuron(0, 2)]
    assert neurons_above(-scores.abs(), 0.2) == []


def test_a_facts_neurons_are_in_a_share_of_its_prompts() -> None:
    prompts = [neurons(1, 2), neurons(1, 3), neurons(1, 2), neurons(2)]
    assert shared_by(prompts, 0.75) == tuple(neurons(1, 2))
    assert shared_by(prompts, 0.76) == ()


def test_the_share_moves_until_facts_have_two_to_five_neurons() -> None:
    wide = [[neurons(*range(i, 20)) for i in range(10)]]
    found = of_relation(wide, NeuronThresholds())
    assert found.share == pytest.approx(1.0) and found.mean == 11  # six moves are not enough
    narrow = [[neurons(1), neurons(1), neurons(2), neurons(2), neurons(3)]] * 3
    found = of_relation(narrow, NeuronThresholds())
    assert found.share == pytest.approx(0.4) and found.facts[0] == tuple(neurons(1, 2))
    right = [[neurons(1, 2, 3)] * 3]
    assert of_relation(right, NeuronThresholds()).share == 0.7


def test_a_relations_neurons_are_the_most_frequent_over_its_facts() -> None:
    facts = [neurons(1, 2), neurons(2), neurons(2, 3), neurons(3)]
    assert most_frequent(facts, share=0.5) == tuple(neurons(2, 3))
    assert most_frequent(facts, count=1) == tuple(neurons(2))


# -- operations


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_suppressing_all_neurons_is_a_zero_row(name: str) -> None:
    passes, gold = made(name)
    for block in range(BLOCKS):
        every = [FfnNeuron(block, place) for place in range(FFN_WIDTH)]
        row, of_row = slow(passes, gold, block)
        expected = float(of_row(torch.zeros_like(row)))
        assert probability(passes, [gold], every, 0.0) == pytest.approx(expected, rel=1e-5)
        assert probability(passes, [gold], every, 1.0) == pytest.approx(float(of_row(row)))


def test_each_text_of_a_batch_has_its_own_factors() -> None:
    passes, gold = made("bert")
    other = GoldToken(tuple(reversed(IDS)), 3, 11)
    factors = torch.ones(2, FFN_WIDTH)
    factors[1, 5] = 2.0
    found = token_probabilities(passes, [gold, other], {1: factors})
    assert float(found[0]) == pytest.approx(probability(passes, [gold]), rel=1e-5)
    expected = probability(passes, [other], [FfnNeuron(1, 5)], 2.0)
    assert float(found[1]) == pytest.approx(expected, rel=1e-5)


def test_an_erased_value_is_zero_and_comes_back_bit_for_bit(knowing: Session) -> None:
    edited = knowing.edited
    before = {name: tensor.clone() for name, tensor in edited.model.state_dict().items()}
    chosen = [FfnNeuron(0, 3), FfnNeuron(1, 7), FfnNeuron(1, 2)]
    with in_weights(edited, [scaled_values(edited, chosen, 0.0)]):
        for block, place in chosen:
            values = edited.anatomy.down_weight(edited.model, block)
            assert not values[place].any()
            assert values.any(1).sum() == len(values) - sum(n.block == block for n in chosen)
    after = edited.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_scaled_value_is_a_scaled_activation_everywhere(knowing: Session) -> None:
    edited = knowing.edited
    down = edited.anatomy.down_module(edited.model, 1)
    inputs = {"input_ids": torch.tensor([[3, 4, 5, 6]])}

    def scaled(state: Tensor) -> Tensor:
        state = state.clone()
        state[..., 4] *= 2
        return state

    with torch.no_grad(), hooks.fed(down, scaled):
        expected = edited.model(**inputs).logits
    with torch.no_grad(), in_weights(edited, [scaled_values(edited, [FfnNeuron(1, 4)], 2.0)]):
        torch.testing.assert_close(edited.model(**inputs).logits, expected)


# -- facts


def fact(country: int, *answers: str) -> PromptedFact:
    prompts = tuple(language.ask(country, phrasing) for phrasing in range(4))
    return PromptedFact(prompts, answers, language.COUNTRIES[country], "capital")


def test_a_facts_neurons_carry_its_answer(knowing: Session) -> None:
    finder = NeuronFinder(knowing.edited, knowing.task)
    found = finder.find([fact(country, language.capital(country)) for country in range(3)])
    for each in found:
        assert each.is_right and each.neurons and each.share == found[0].share
        effects = finder.effects(each)
        assert effects.probability == pytest.approx(each.probability, rel=1e-3)
        assert effects.suppressed < effects.probability
        assert effects.suppressed_in_weights < effects.probability


def test_the_answer_that_the_model_gives_is_the_one_attributed(knowing: Session) -> None:
    finder = NeuronFinder(knowing.edited, knowing.task)
    right, wrong = language.capital(3), language.capital(4)
    assert finder.look_at(fact(3, wrong, right)).answer == right
    assert finder.look_at(fact(3)).answer == right
    assert finder.look_at(fact(3, wrong)).answer == wrong
    found = finder.look_at(fact(3, wrong))
    assert not found.is_right and found.prompts[0].said == right


def test_neurons_of_an_edited_revision_are_its_own(knowing: Session) -> None:
    """The gate of an edit is open on the way: the sum of a block is the change that it makes in the
    edited model."""
    target = language.capital(8)
    list(knowing.apply_requests([_request(3, target)], knowing.settings(chain=("tpatcher",))))
    finder = NeuronFinder(knowing.edited, knowing.task, steps=400)
    assert finder.passes.way is ways.FullPass
    prompt = language.ask(3)
    tokens = finder.gold_tokens(prompt, target)
    found = attribute(finder.passes, tokens, 400)
    assert found.is_right
    width, last = finder.passes.anatomy.ffn_width, finder.passes.anatomy.last
    every = [FfnNeuron(last, place) for place in range(width)]
    change = found.probability - probability(finder.passes, tokens, every, 0.0)
    assert float(found.scores[last].sum()) == pytest.approx(change, abs=2e-3)


def _request(country: int, target: str) -> Any:
    from continual.requests import Request

    return Request.from_json(language.correction(country, target))


def test_a_relation_sums_up_its_facts():
    """P is weighed by facts, so that one of P near 0 counts for little; no relation, no line."""
    one, other = FfnNeuron(0, 3), FfnNeuron(1, 5)
    facts = [("capital", (one, other)), ("capital", (one,)), ("sea", (other,)), (None, (one,))]
    found = [
        FactNeurons(PromptedFact(("a",), ("b",), relation=name), "b", (), neurons)
        for name, neurons in facts
    ]
    effects = [
        NeuronEffects(0.9, 0.3, 1.0, 0, 0),
        NeuronEffects(0.1, 0.2, 0.0, 0, 0),
        NeuronEffects(0.0, 0.0, 0.0, 0, 0),
        NeuronEffects(0.5, 0.5, 0.5, 0, 0),
    ]
    capital, sea = relations_of(found, effects, share=1.0)
    assert (capital.relation, capital.facts, capital.neurons) == ("capital", 2, (one,))
    assert capital.suppressed == pytest.approx(-0.5)
    assert capital.amplified == pytest.approx(0.0)
    assert (sea.facts, sea.neurons, sea.suppressed) == (1, (other,), None)
