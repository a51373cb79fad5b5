"""The edited model: patches are silent, in order, undone without a trace, and off at the end."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as hf

from continual.anatomy import find_anatomy
from continual.base import PretrainedBase, load_base
from continual.effects import gated
from continual.errors import CeditError, ModelError
from continual.hooks import captured
from continual.model import EditedModel, stand_at
from continual.model_files import directory_fingerprint
from continual.passes.partial import logits_of
from continual.patches import pack, unpack
from continual.patches.neuron import NeuronPatch
from tests import tiny_language as language
from tests.tiny_models import BLOCKS, TINY, WIDTH, tiny_inputs, tiny_model

ACTIVATIONS = ["gpt2", "gpt-neox", "opt", "opt-post-norm", "llama", "phi3", "gemma2", "bart", "t5"]
DECODERS = ["gpt2", "opt-post-norm", "llama"]


def edited(name: str = "gpt2") -> EditedModel:
    """A tiny model with nothing on it."""
    model = tiny_model(name)
    return EditedModel(PretrainedBase(model, language.tokenizer(), find_anatomy(model), "base"))


def neurons(count: int, seed: int, block: int = BLOCKS - 1, bias: float = 0.0) -> NeuronPatch:
    """Random neurons: about half of them fire on any query where the bias is 0."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, count, WIDTH, generator=generator)
    return NeuronPatch(block, keys, torch.full((count,), bias), values)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_silent_neurons_change_nothing_bit_for_bit(name):
    model = edited(name)
    for padded in (False, True):
        inputs = tiny_inputs(model.model, padded=padded)
        with captured(model.anatomy.query_module(model.model, BLOCKS - 1)) as calls:
            bare = logits_of(model.model, inputs)
        patch = neurons(20, seed=1)
        highest = (calls[0].input @ patch.keys.T).flatten(0, -2).amax(0)
        silent = NeuronPatch(patch.block, patch.keys, -highest.clamp(min=0) - 1e-3, patch.values)
        with model:
            model.put([silent])
            assert torch.equal(logits_of(model.model, inputs), bare)
            model.put([patch])
            assert not torch.equal(logits_of(model.model, inputs), bare)
            model.take_off(0)


def test_a_row_that_fires_leaves_the_others_of_its_batch_as_they_are():
    model = edited()
    inputs = tiny_inputs(model.model)
    with captured(model.anatomy.query_module(model.model, BLOCKS - 1)) as calls:
        bare = logits_of(model.model, inputs)
    query = calls[0].input
    key = query[1, 3] / query[1, 3].square().sum()
    scores = query @ key
    first, second = scores.flatten().topk(2).values
    place = divmod(int(scores.argmax()), query.shape[1])
    patch = NeuronPatch(BLOCKS - 1, key[None], -(first + second)[None] / 2, torch.ones(1, WIDTH))
    with model:
        model.put([patch])
        patched = logits_of(model.model, inputs)
    changed = (patched != bare).any(-1)
    assert changed.nonzero().tolist() == [list(place)]


@pytest.mark.parametrize("name", DECODERS)
def test_going_back_is_as_never_having_gone_forward(name):
    inputs = tiny_inputs(tiny_model(name))
    steps = [[neurons(3, 1)], [neurons(70, 2), neurons(2, 3, block=0)], [], [neurons(1, 4, 1)]]
    states = []
    for depth in range(len(steps) + 1):
        fresh = edited(name)
        with fresh:
            stand_at(fresh, steps[:depth])
            states.append((fresh.fingerprint, logits_of(fresh.model, inputs)))
    walked = edited(name)
    with walked:
        for parts in steps:
            walked.put(parts)
        for depth in (4, 2, 1, 0, 3, 1, 4, 2, 0):
            if depth > walked.depth:
                stand_at(walked, steps[:depth])
            else:
                walked.take_off(depth)
            fingerprint, logits = states[depth]
            assert walked.fingerprint == fingerprint
            assert torch.equal(logits_of(walked.model, inputs), logits)
    assert len({fingerprint for fingerprint, _ in states}) == 4  # the empty step changes nothing


def test_an_undone_step_can_be_followed_by_another():
    inputs = tiny_inputs(tiny_model("gpt2"))
    one, two, three = ([neurons(5, seed)] for seed in (1, 2, 3))
    walked, straight = edited(), edited()
    with walked, straight:
        stand_at(walked, [one, two])
        walked.take_off(1)
        walked.put(three)
        stand_at(straight, [one, three])
        assert walked.fingerprint == straight.fingerprint
        assert torch.equal(logits_of(walked.model, inputs), logits_of(straight.model, inputs))


def test_no_more_steps_can_be_kept_than_were_taken():
    model = edited()
    model.put([neurons(1, 1)])
    for depth in (-1, 2):
        with pytest.raises(ValueError):
            model.take_off(depth)
    assert model.depth == 1


def fingerprint_of(*steps: list[NeuronPatch]) -> str:
    model = edited()
    stand_at(model, steps)
    return model.fingerprint


def test_the_fingerprint_tells_order_steps_tensors_and_places_apart():
    one, two = neurons(2, 1), neurons(2, 2)
    moved = NeuronPatch(0, one.keys, one.bias, one.values)
    nudged = NeuronPatch(one.block, one.keys, one.bias, one.values.nextafter(torch.tensor(9.0)))
    states = [
        fingerprint_of(),
        fingerprint_of([one], [two]),
        fingerprint_of([two], [one]),
        fingerprint_of([one, two]),
        fingerprint_of([one]),
        fingerprint_of([moved]),
        fingerprint_of([nudged]),
    ]
    assert len(set(states)) == len(states)
    assert fingerprint_of([one], [two]) == fingerprint_of([one], [two])


def test_the_fingerprint_survives_packing_and_unpacking():
    parts = [neurons(2, 1), neurons(3, 2)]
    tensors, meta = pack(parts)
    back = unpack(tensors, json.loads(json.dumps(meta)))
    assert fingerprint_of(list(back)) == fingerprint_of(parts)


@pytest.mark.parametrize("count", [1, 64, 65, 700])
def test_many_neurons_add_what_the_dense_formula_says(count):
    model = edited()
    inputs = tiny_inputs(model.model)
    down = model.anatomy.down_module(model.model, BLOCKS - 1)
    parts = [neurons(count, seed, bias=-0.5) for seed in (1, 2)]
    with captured(down) as bare:
        logits_of(model.model, inputs)
    with model, captured(model.anatomy.query_module(model.model, BLOCKS - 1)) as queries:
        stand_at(model, [[part] for part in parts])
        with captured(down) as patched:
            logits_of(model.model, inputs)
    keys = torch.cat([part.keys for part in parts]).double()
    bias = torch.cat([part.bias for part in parts]).double()
    values = torch.cat([part.values for part in parts]).double()
    activations = torch.relu(queries[0].input.double() @ keys.T + bias)
    expected = bare[0].hidden.double() + activations @ values
    largest = bare[0].hidden.abs().double() + activations @ values.abs()  # of what is summed
    error = (patched[0].hidden.double() - expected).abs() / largest
    assert error.max() < 2**-23 * 8
    assert (activations > 0).any() and (activations == 0).any()


def test_activations_do_not_depend_on_what_else_is_on_or_asked():
    model = edited()
    queries = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(0))
    model.put([neurons(300, seed=1, bias=-4.0)])
    bank = model.bank(BLOCKS - 1)
    before = bank.firing(queries)
    model.put([neurons(500, seed=2, bias=-4.0)])
    whole = bank.firing(queries)
    assert 0 < len(before) < len(whole) < 800
    followed = before.followed_by(bank.firing(queries, 300))
    assert torch.equal(followed.places, whole.places)
    assert torch.equal(followed.activations, whole.activations)
    alone = bank.firing(queries[7:8])
    own = whole.activations[7] > 0
    assert torch.equal(alone.places, whole.places[own])
    assert torch.equal(alone.activations[0], whole.activations[7, own])


def test_what_neurons_add_is_the_same_in_parts(monkeypatch):
    model = edited()
    model.put([neurons(200, seed=1, bias=-4.0)])
    queries = torch.randn(5, 9, WIDTH, generator=torch.Generator().manual_seed(0))
    whole = model.bank(BLOCKS - 1).contribution(queries)
    monkeypatch.setattr(gated, "ACTIVATIONS_MAX", 7 * 200)  # seven queries at a time
    parts = model.bank(BLOCKS - 1).contribution(queries)
    torch.testing.assert_close(parts, whole)
    assert whole.abs().max() > 1


def test_a_state_is_known_to_have_been_passed_as_long_as_its_neurons_are_the_first():
    model = edited()
    model.put([neurons(3, seed=1)])
    state = model.fingerprint
    model.put([neurons(4, seed=2)])
    assert model.has_passed(state, 3)
    assert not model.has_passed(state, 2)
    with model.before_last_neurons():
        assert not model.has_passed(state, 3)
    model.take_off(0)
    model.put([neurons(3, seed=3)])
    model.put([neurons(4, seed=2)])
    assert not model.has_passed(state, 3)


@pytest.mark.parametrize("name", sorted(set(TINY) & {"gpt2", "llama", "opt-post-norm", "bart"}))
def test_neurons_act_through_a_growing_cache_as_through_a_whole_pass(name):
    """generate runs position by position; it must go on as full passes do."""
    model = edited(name)
    inputs = {"input_ids": tiny_inputs(model.model, batch=1)["input_ids"]}
    with model:
        model.put([neurons(30, 1)])
        kwargs = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        cached = model.generate(**inputs, use_cache=True, **kwargs)
        whole = model.generate(**inputs, use_cache=False, **kwargs)
    bare = model.generate(**inputs, use_cache=True, **kwargs)
    assert torch.equal(cached, whole)
    assert not torch.equal(cached, bare)


def test_generate_and_a_pipeline_run_with_the_patches_inside_only(random_model):
    base = load_base(random_model)
    model = EditedModel(base)
    prompt = language.ask(1)
    width, last = base.anatomy.width, base.anatomy.last
    generator = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 40, width, generator=generator)
    model.put([NeuronPatch(last, keys, torch.zeros(40), 5 * values)])
    ids = base.tokenizer(prompt, return_tensors="pt")

    def generated() -> str:
        found = model.generate(**ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        return base.tokenizer.decode(found[0, ids["input_ids"].shape[1] :])

    def piped() -> str:
        pipe = hf.pipeline("text-generation", model=model.model, tokenizer=base.tokenizer)
        found = pipe(prompt, max_new_tokens=4, do_sample=False, return_full_text=False)
        return found[0]["generated_text"].strip()

    before = generated()
    with model:
        inside = generated()
        assert piped() == inside
    assert generated() == before == piped()
    assert inside != before


def hooks_on(model: EditedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


def test_no_hook_outlives_an_exception():
    model = edited()
    inputs = tiny_inputs(model.model)
    bare = logits_of(model.model, inputs)
    with pytest.raises(RuntimeError, match="on purpose"), model:
        model.put([neurons(3, 1), neurons(3, 2, block=0)])
        assert hooks_on(model) > 0
        raise RuntimeError("on purpose")
    assert hooks_on(model) == 0
    assert torch.equal(logits_of(model.model, inputs), bare)
    with model:
        assert not torch.equal(logits_of(model.model, inputs), bare)


def test_entering_twice_does_not_put_the_patches_on_twice():
    model = edited()
    inputs = tiny_inputs(model.model)
    with model:
        model.put([neurons(3, 1)])
        once = logits_of(model.model, inputs)
        with model:
            assert torch.equal(logits_of(model.model, inputs), once)
        assert torch.equal(logits_of(model.model, inputs), once)
    assert hooks_on(model) == 0


def test_neurons_can_be_silenced_for_a_while():
    model = edited()
    inputs = tiny_inputs(model.model)
    bare = logits_of(model.model, inputs)
    with model:
        model.put([neurons(3, 1)])
        patched = logits_of(model.model, inputs)
        with pytest.raises(RuntimeError), model.before_last_neurons():
            assert torch.equal(logits_of(model.model, inputs), bare)
            raise RuntimeError
        assert torch.equal(logits_of(model.model, inputs), patched)


@pytest.mark.parametrize("block", [-1, BLOCKS])
def test_a_patch_for_a_block_that_is_not_there_is_refused(block):
    with pytest.raises(ModelError, match=f"block {block}"):
        edited().put([neurons(1, 1, block=block)])


@pytest.mark.parametrize("width", [1, WIDTH - 1, WIDTH + 1])
def test_a_patch_of_another_width_is_refused(width):
    patch = NeuronPatch(0, torch.ones(2, width), torch.ones(2), torch.ones(2, width))
    with pytest.raises(CeditError):
        edited().put([patch])


@pytest.mark.parametrize(
    "patch",
    [
        NeuronPatch(0, torch.ones(2, 4), torch.ones(3), torch.ones(2, 4)),
        NeuronPatch(0, torch.ones(2, 4), torch.ones(2), torch.ones(2, 5)),
        NeuronPatch(0, torch.ones(2, 4), torch.ones(2), torch.ones(2, 4).fill_(torch.nan)),
        NeuronPatch(0, torch.ones(2, 4), torch.full((2,), torch.inf), torch.ones(2, 4)),
        NeuronPatch(0, torch.ones(2, 4).double(), torch.ones(2), torch.ones(2, 4)),
        NeuronPatch(0, torch.ones(4), torch.ones(2), torch.ones(2, 4)),
    ],
)
def test_a_patch_that_is_not_sound_is_refused(patch):
    with pytest.raises(CeditError):
        patch.check()


# -- directories


def test_a_base_models_fingerprint_follows_its_files(random_model, tmp_path):
    copy = tmp_path / "copy"
    language.save_decoder(copy, hf.AutoModelForCausalLM.from_pretrained(random_model))
    assert directory_fingerprint(copy) == directory_fingerprint(random_model)
    (copy / "README.md").write_text("not part of it")
    assert directory_fingerprint(copy) == directory_fingerprint(random_model)
    other = language.save_decoder(tmp_path / "other", language.decoder(seed=1))
    assert directory_fingerprint(other) != directory_fingerprint(random_model)
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
    assert directory_fingerprint(copy) != directory_fingerprint(random_model)


def test_what_is_no_model_directory_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_base(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="has no weights"):
        load_base(tmp_path)


def test_a_model_without_a_tokenizer_is_named(random_model, tmp_path):
    """Transformers makes one up for it, without a word."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((random_model / name).read_bytes())
    with pytest.raises(ModelError, match="has no tokenizer: put its own there"):
        load_base(tmp_path)


def test_an_unknown_number_format_is_named(random_model):
    with pytest.raises(ModelError):
        load_base(random_model, dtype="float31")


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert-labels", "roberta-labels", "bart"])
def test_a_model_reads_as_many_tokens_as_it_is_said_to(name):
    """And no more: its table of positions ends there, wherever it begins."""
    model = tiny_model(name)
    most = PretrainedBase(model, None, find_anatomy(model), "").context_tokens_max
    assert most is not None
    model(**tiny_inputs(model, length=most))
    with pytest.raises((IndexError, RuntimeError)):  # BERT: of its sizes, before it looks up
        model(**tiny_inputs(model, length=most + 1))


@pytest.mark.parametrize("said", [-1, 0])
def test_a_model_that_names_no_bound_reads_as_much_as_it_is_given(said):
    model = tiny_model("gpt2")
    model.config.n_positions = said
    assert PretrainedBase(model, None, find_anatomy(model), "").context_tokens_max is None


@pytest.mark.parametrize("device", ["cuda:99", "meta", "nonsense", ""])
def test_a_device_that_is_not_here_is_named(random_model, device):
    with pytest.raises(ModelError, match=f"Device '{device}' cannot be used here .*cedit.toml"):
        load_base(random_model, device=device)
