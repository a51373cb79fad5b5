"""Gates at any place: silent ones change nothing, open ones add what a slow reference says."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from continual import hooks, patches
from continual.anatomy import find_anatomy, reads_ahead
from continual.base import PretrainedBase
from continual.effects.places import FFN, HIDDEN, KEYS, POOLED, VALUES, GatePlace
from continual.errors import CeditError, EditError, ModelError
from continual.model import EditedModel
from continual.passes.partial import logits_of, record, run
from continual.patches import pack, unpack
from continual.patches.neuron import GatePatch, NeuronPatch, neurons_at
from tests import tiny_language as language
from tests.continual.effects.decoding import check, decoded
from tests.tiny_models import BLOCKS, WIDTH, tiny_inputs, tiny_model

MODELS = ("gpt2", "llama", "opt-post-norm", "gptj", "bart", "t5", "bert-labels", "gpt2-labels")
DECODERS = ("gpt2", "llama", "opt-post-norm", "gptj")


def places() -> list[GatePlace]:
    """Every place of a model of three blocks."""
    found = []
    for parts in product(range(BLOCKS), KEYS, range(BLOCKS), VALUES):
        try:
            found.append(GatePlace.at(*parts))
        except EditError:
            continue
    return found


def edited(name: str) -> EditedModel:
    model = tiny_model(name)
    return EditedModel(PretrainedBase(model, language.tokenizer(), find_anatomy(model), "base"))


def neurons(place: GatePlace, seed: int = 0, bias: float = 0.0) -> NeuronPatch:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 6, WIDTH, generator=generator)
    return neurons_at(place, keys, torch.full((6,), bias), values)


def queries_by_hand(model: EditedModel, place: GatePlace, inputs: dict[str, Tensor]) -> Tensor:
    """[B, T, d] the queries of a place in a pass of the bare model; pooled ones token by token."""
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    shape = inputs[name].shape
    module = model.anatomy.block(model.model, place.block)
    if place.key == FFN:
        module = model.anatomy.query_module(model.model, place.block)
    with hooks.captured(module) as calls:
        logits_of(model.model, inputs)
    states = (calls[0].input if place.key == FFN else calls[0].hidden).view(*shape, WIDTH)
    if place.key != POOLED:
        return states
    mask = inputs["attention_mask"] if name == "input_ids" and "attention_mask" in inputs else None
    real = torch.ones(shape) if mask is None else mask
    is_encoder = reads_ahead(model.model, model.anatomy)
    pooled = torch.zeros(*shape, WIDTH, dtype=torch.float64)
    for row, token in product(range(shape[0]), range(shape[1])):
        seen = range(shape[1] if is_encoder else token + 1)
        kept = [states[row, other].double() for other in seen if real[row, other]]
        pooled[row, token] = torch.stack(kept).mean(0)
    return pooled.float()


def logits_by_hand(
    model: EditedModel, place: GatePlace, patch: NeuronPatch, inputs: dict[str, Tensor]
) -> Tensor:
    """The logits with values added by hand to the landing's output, in a pass of its own."""
    scores = queries_by_hand(model, place, inputs).double() @ patch.keys.double().T
    added = torch.relu(scores + patch.bias.double()).float() @ patch.values
    landing = model.anatomy.block(model.model, place.value_block)
    if place.value == FFN:
        landing = model.anatomy.down_module(model.model, place.value_block)
    with hooks.altered(landing, lambda output: output + added.view(output.shape)):
        return logits_of(model.model, inputs)


@pytest.mark.parametrize("name", MODELS)
def test_silent_gates_change_nothing_bit_for_bit_at_any_place(name):
    model = edited(name)
    for padded in (False, True):
        inputs = tiny_inputs(model.model, padded=padded)
        bare = logits_of(model.model, inputs)
        with model:
            for place in places():
                patch = neurons(place)
                highest = (queries_by_hand(model, place, inputs) @ patch.keys.T).flatten(0, 1)
                silent = -highest.amax(0).clamp(min=0) - 1e-3
                model.put([neurons_at(place, patch.keys, silent, patch.values)])
                assert torch.equal(logits_of(model.model, inputs), bare), place
                model.put([patch])
                assert not torch.equal(logits_of(model.model, inputs), bare), place
                model.take_off(0)
                assert torch.equal(logits_of(model.model, inputs), bare), place


@pytest.mark.parametrize("name", MODELS)
def test_open_gates_add_what_a_pass_by_hand_adds(name):
    model = edited(name)
    inputs = tiny_inputs(model.model, padded=not model.model.config.is_encoder_decoder)
    for place in places():
        patch = neurons(place, bias=-1.0)
        expected = logits_by_hand(model, place, patch, inputs)
        with model:
            model.put([patch])
            found = logits_of(model.model, inputs)
            model.take_off(0)
        real = torch.ones(found.shape[:-1], dtype=torch.bool)
        if found.ndim == 3 and "attention_mask" in inputs and found.shape[1] > 5:
            real = inputs["attention_mask"].bool()
        assert torch.allclose(found[real], expected[real], rtol=1e-4, atol=1e-4), place


@pytest.mark.parametrize("name", ["gpt2", "bert-labels"])
def test_gates_of_one_block_do_not_see_what_another_adds_and_their_order_is_the_places(name):
    model = edited(name)
    inputs = tiny_inputs(model.model)
    at = [GatePlace.at(1, FFN, 1, HIDDEN), GatePlace.at(1, HIDDEN), GatePlace.at(1, POOLED)]
    logits = []
    for order in (at, at[::-1]):
        fresh = edited(name)
        with fresh:
            for place in order:
                fresh.put([neurons(place, seed=at.index(place))])
            logits.append(logits_of(fresh.model, inputs))
    assert torch.equal(*logits)
    total = 0.0
    for place in at:
        patch = neurons(place, seed=at.index(place))
        scores = queries_by_hand(model, place, inputs) @ patch.keys.T
        total = total + torch.relu(scores) @ patch.values
    block = model.anatomy.block(model.model, 1)
    with hooks.altered(block, lambda output: output + total):
        assert torch.allclose(logits[0], logits_of(model.model, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_padding_does_not_touch_a_pooled_gate(name):
    model = edited(name)
    inputs = tiny_inputs(model.model, padded=not model.model.config.is_encoder_decoder)
    if "attention_mask" in inputs:  # some classifiers tell padding by its token
        inputs["input_ids"] = inputs["input_ids"] * inputs["attention_mask"]
    with model:
        model.put([neurons(GatePlace.at(1, POOLED), bias=-0.2)])
        together = logits_of(model.model, inputs)
        for row in range(3):
            length = int(inputs["attention_mask"][row].sum()) if "attention_mask" in inputs else 7
            alone = {key: t[row : row + 1, :length] for key, t in inputs.items()}
            found = logits_of(model.model, alone)[0]
            expected = together[row][: len(found)] if together.ndim == 3 else together[row]
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_with_a_pooled_gate_is_plain_decoding_without_a_cache(name, beams):
    check(decoded(edited(name), neurons(GatePlace.at(1, POOLED, 2), bias=-0.2), beams), beams)


def test_a_pass_that_reads_a_cache_is_refused_while_a_pooled_gate_is_on():
    model = edited("gpt2")
    ids = tiny_inputs(model.model)["input_ids"]
    with model:
        cache = model(input_ids=ids, use_cache=True).past_key_values
        model.put([neurons(GatePlace.at(0, POOLED))])
        with pytest.raises(ModelError, match="use_cache=False"):
            model(input_ids=ids[:, -1:], past_key_values=cache)
        model.take_off(0)
        model(input_ids=ids[:, -1:], past_key_values=cache)


def test_a_remote_gate_is_not_run_from_behind_its_key():
    model = edited("gpt2")
    inputs = tiny_inputs(model.model)
    with model:
        model.put([neurons(GatePlace.at(0, HIDDEN, 2))])
        recording = record(model.model, model.anatomy, inputs, [0, 1])
        whole = run(model.model, model.anatomy, recording, recording.hidden[0], 0, BLOCKS)
        assert whole.shape == recording.hidden[0].shape
        with pytest.raises(ModelError, match="the output of block 0"):
            run(model.model, model.anatomy, recording, recording.hidden[1], 1, BLOCKS)


@pytest.mark.parametrize(
    "parts",
    [(1, HIDDEN, 1, FFN), (2, FFN, 1), (1, POOLED, 0, HIDDEN), (0, "words"), (0, FFN, 0, "x")],
)
def test_a_value_that_would_land_before_its_key_is_read_is_refused(parts):
    with pytest.raises(EditError):
        GatePlace.at(*parts)


def test_a_place_of_another_model_is_refused():
    with pytest.raises(ModelError, match="block 3"):
        edited("gpt2").gates(GatePlace.at(1, HIDDEN, 3))


def test_a_patch_at_a_new_place_is_a_kind_that_older_versions_refuse(monkeypatch):
    place = GatePlace.at(0, POOLED, 2)
    patch = neurons(place).owned_by(tuple("abcdef"))
    tensors, meta = pack([patch])
    assert meta["parts"][0]["kind"] == "gate"
    (read,) = unpack(tensors, meta)
    assert isinstance(read, GatePatch) and read.place == place and read.owners == patch.owners
    assert pack([read])[1] == meta
    local = pack([neurons(GatePlace.at(1))])[1]
    assert local == {"parts": [{"kind": "neuron", "block": 1}]}
    older = {kind: known for kind, known in patches.KINDS.items() if kind != "gate"}
    monkeypatch.setattr(patches, "KINDS", older)
    with pytest.raises(CeditError, match="'gate'"):
        unpack(tensors, meta)


def test_patches_are_joined_by_their_places():
    at = [GatePlace.at(0, HIDDEN), GatePlace.at(1, HIDDEN), GatePlace.at(0, HIDDEN)]
    model, joined = edited("gpt2"), edited("gpt2")
    steps = [neurons(place, seed) for seed, place in enumerate(at)]
    parts = GatePatch.joined(steps)
    assert [part.place for part in parts] == at[:2] and [part.rows for part in parts] == [12, 6]
    inputs = tiny_inputs(model.model)
    with model, joined:
        for step in steps:
            model.put([step])
        joined.put(parts)
        assert torch.equal(logits_of(model.model, inputs), logits_of(joined.model, inputs))
