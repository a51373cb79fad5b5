"""Queries with a context: the mean of an inner block's queries over the latest tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from continual import hooks, new_store
from continual.anatomy import find_anatomy
from continual.base import PretrainedBase, load_base
from continual.effects import context as contexts
from continual.effects import places
from continual.effects.places import CONTEXT, FFN, TOPIC, GatePlace
from continual.errors import EditError, ModelError
from continual.model import EditedModel
from continual.passes.edit_site import settled, usual_context
from continual.passes.partial import logits_of, record, rows_from
from continual.patches import pack, unpack
from continual.patches.neuron import GatePatch, NeuronPatch, neurons_at
from continual.prompts import Chat
from continual.session import open_session
from continual.site import Site
from continual.tasks import Encoding, Question, make_task
from continual.watch.config import UNWATCHED
from tests import tiny_language as language
from tests.continual.effects.decoding import check, decoded
from tests.continual.recheck.conftest import from_scratch
from tests.tiny_chat import save_chat_model
from tests.tiny_models import WIDTH, tiny_inputs, tiny_model

DECODERS = ("gpt2", "llama", "opt-post-norm", "gptj")
PLACE = GatePlace.at(2, CONTEXT, context=1)
TOPIC_PLACE = GatePlace.at(2, TOPIC, context=1)
FORMS = ("context", "topic")


@pytest.fixture(autouse=True)
def short_window(monkeypatch):
    """A window that the tiny texts of these tests are longer than."""
    monkeypatch.setattr(contexts, "TOKENS", 3)
    monkeypatch.setattr(contexts, "TOPIC_TOKENS", 2)


def turn_in(model: EditedModel) -> tuple[int, ...]:
    """Two tokens of the second text that stand side by side, and one that does not follow them."""
    text = tiny_inputs(model)["input_ids"][1].tolist()
    return (text[2], text[3], text[0])


def edited(name: str, form: str = "context", block: int | None = 1) -> EditedModel:
    model = tiny_model(name)
    turn = turn_in(model) if form == "topic" else None
    anatomy = replace(settled(model, find_anatomy(model)), context_block=block, turn=turn)
    return EditedModel(PretrainedBase(model, language.tokenizer(), anatomy, "base"))


def queries_by_hand(model: EditedModel, inputs: dict[str, Tensor]) -> Tensor:
    """[B, T, d] the queries of PLACE in a pass of the bare model, number by number."""
    with (
        hooks.captured(model.anatomy.query_module(model.model, 2)) as last,
        hooks.captured(model.anatomy.query_module(model.model, 1)) as inner,
    ):
        logits_of(model.model, inputs)
    shape = inputs["input_ids"].shape
    mask = inputs.get("attention_mask", torch.ones(shape))
    states = inner[0].input.view(*shape, WIDTH)
    found = torch.zeros(*shape, WIDTH)
    for row in range(shape[0]):
        left_out = places_of(model.anatomy.turn or (), inputs["input_ids"][row], mask[row])
        for token in range(shape[1]):
            if not mask[row, token]:
                continue
            counted = [t for t in range(token + 1) if mask[row, t] and t not in left_out]
            latest = counted[-(contexts.TOKENS if model.anatomy.turn is None else 2) :]
            kept = [states[row, other].double() for other in latest]
            mean = torch.stack(kept).mean(0) if kept else torch.zeros(WIDTH).double()
            query = last[0].input.view(*shape, WIDTH)[row, token].double()
            beside = (mean / math.sqrt(mean.square().mean() or 1.0)).tolist()
            order, signs = (part.tolist() for part in contexts.turning(WIDTH))
            turned = [beside[i] * sign for i, sign in zip(order, signs, strict=True)]
            turned = torch.tensor(turned, dtype=torch.float64)
            query = query / math.sqrt(query.square().mean()) + contexts.WEIGHT * turned
            found[row, token] = query.float()
    return found


def places_of(turn: tuple[int, ...], ids: Tensor, mask: Tensor) -> set[int]:
    """The places of tokens that stand as they begin a turn's end."""
    left_out: set[int] = set()
    real = [place for place in range(len(ids)) if mask[place]]
    for start in range(len(real)):
        for length, token in enumerate(turn):
            if start + length >= len(real) or ids[real[start + length]] != token:
                break
            left_out.add(real[start + length])
    return left_out


def neurons(
    seed: int = 0, bias: float = 0.0, subjects: tuple[str, ...] = (), place: GatePlace = PLACE
) -> NeuronPatch:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 6, WIDTH, generator=generator)
    patch = neurons_at(place, keys, torch.full((6,), bias), values)
    return replace(patch, subjects=subjects)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_open_gates_add_what_a_pass_by_hand_adds(name, padded, form):
    model = edited(name, form)
    inputs = tiny_inputs(model.model, padded=padded)
    patch = neurons(bias=-1.0, place=model.site_place)
    scores = queries_by_hand(model, inputs).double() @ patch.keys.double().T
    added = torch.relu(scores + patch.bias.double()).float() @ patch.values
    with hooks.altered(
        model.anatomy.down_module(model.model, 2), lambda output: output + added.view(output.shape)
    ):
        expected = logits_of(model.model, inputs)
    with model:
        bare = logits_of(model.model, inputs)
        model.put([patch])
        found = logits_of(model.model, inputs)
        model.put([neurons_at(model.site_place, patch.keys, torch.full((6,), -1e6), patch.values)])
        assert torch.equal(logits_of(model.model, inputs), found)  # silent: not a bit
        model.take_off(0)
        assert torch.equal(logits_of(model.model, inputs), bare)
    real = inputs.get("attention_mask", torch.ones(found.shape[:2])).bool()
    assert torch.allclose(found[real], expected[real], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[real], bare[real], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("form", FORMS)
def test_rows_at_the_site_are_the_queries_by_hand(name, form):
    model = edited(name, form)
    ids = tiny_inputs(model.model)["input_ids"].tolist()
    encodings = [
        Encoding(Question(tuple(text[:length])), (1, length - 1), (5, 6))
        for text, length in zip(ids, (7, 5, 4), strict=True)
    ]
    with model:
        site = Site(model, make_task(model.base, {"name": "causal"}))
        model.put([neurons(bias=-1.0, place=model.site_place)])
        for _ in range(40):  # the pass is traced on the way
            rows = site.rows(encodings)
        inputs = site.inputs(encodings)
        for block in (0, 1, 2):
            with model.before_last_neurons():
                recording = record(model.model, model.anatomy, inputs, [block])
                query, hidden = rows_from(model.model, model.anatomy, recording, block)
            places = [(i, p) for i, e in enumerate(encodings) for p in e.positions]
            again = torch.stack([query[i, p] for i, p in places])
            assert torch.allclose(again, rows.query, rtol=1e-4, atol=1e-5), block
            assert torch.allclose(
                torch.stack([hidden[i, p] for i, p in places]), rows.hidden, rtol=1e-4, atol=1e-5
            )
        assert site.place == (PLACE if form == "context" else TOPIC_PLACE)
    by_hand = queries_by_hand(model, inputs)
    expected = torch.stack([by_hand[i, p] for i, p in places])
    assert torch.allclose(rows.query, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_generation_goes_on_from_its_cache_as_without_one(name, beams, form):
    model = edited(name, form)
    check(decoded(model, neurons(bias=-0.5, place=model.site_place), beams), beams)


def test_a_topic_needs_the_tokens_that_it_leaves_out():
    with edited("gpt2") as model, pytest.raises(ModelError, match="put it back"):
        model.put([neurons(place=TOPIC_PLACE)])


def test_the_tokens_of_a_turn_are_left_out_where_they_stand_in_order():
    tokens = torch.tensor([[5, 7, 8, 9, 7, 1, 8, 7, 8], [0, 0, 8, 7, 8, 9, 9, 2, 7]])
    mask = torch.tensor([[1] * 9, [0] * 1 + [1] * 8])
    counted = contexts.Window((7, 8, 9)).counted(mask, tokens)
    expected = [[1, 0, 0, 0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0, 1, 1, 0]]
    assert counted.int().tolist() == expected
    for end in range(1, 10):  # later tokens have no say
        early = contexts.Window((7, 8, 9)).counted(mask[:, :end], tokens[:, :end])
        assert torch.equal(early, counted[:, :end])
    padded = torch.tensor([[7, 8, 1]]), torch.tensor([[0, 1, 1]])
    assert contexts.Window((7, 8)).counted(padded[1], padded[0]).int().tolist() == [[0, 1, 1]]


def test_passes_by_hand_go_on_from_a_cache_of_this_model_alone():
    model = edited("gpt2")
    ids = tiny_inputs(model.model)["input_ids"]
    with model:
        foreign = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        model.put([neurons()])
        with pytest.raises(ModelError, match="use_cache=False"):
            model(input_ids=ids[:, -1:], past_key_values=foreign)
        whole = model(input_ids=ids).logits[:, -1]
        cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
        model(input_ids=ids[:, 4:6], past_key_values=cache)
        found = model(input_ids=ids[:, 6:], past_key_values=cache).logits[:, -1]
        assert torch.allclose(found, whole, rtol=1e-4, atol=1e-4)


def test_a_patch_names_its_context_and_older_versions_refuse_it():
    tensors, meta = pack([neurons().owned_by(tuple("abcdef"))])
    assert meta["parts"][0] | {"owners": None} == {
        "kind": "gate",
        "block": 2,
        "key": CONTEXT,
        "value_block": 2,
        "value": FFN,
        "context": 1,
        "owners": None,
    }
    (read,) = unpack(tensors, meta)
    assert isinstance(read, GatePatch) and read.place == PLACE
    assert pack([read])[1] == meta


def test_a_topic_is_a_key_of_its_own_that_older_versions_refuse(monkeypatch):
    tensors, meta = pack([neurons(place=TOPIC_PLACE).owned_by(tuple("abcdef"))])
    (read,) = unpack(tensors, meta)
    assert isinstance(read, GatePatch) and read.place == TOPIC_PLACE
    assert (meta["parts"][0]["key"], meta["parts"][0]["context"]) == ("topic", 1)
    with monkeypatch.context() as older:  # the keys that a version without topics knows
        older.setattr(places, "WITH_CONTEXT", (CONTEXT,))
        with pytest.raises(EditError, match="'topic'"):
            unpack(tensors, meta)


def test_the_turning_of_a_width_never_changes():
    order, signs = contexts.turning(8)
    assert (order.tolist(), signs.tolist()) == (
        [2, 4, 1, 7, 5, 0, 3, 6],
        [-1.0, 1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0],
    )
    order, signs = contexts.turning(896)
    assert sorted(order.tolist()) == list(range(896)) and set(signs.tolist()) == {1.0, -1.0}
    assert abs(float(signs.sum())) < 90  # three deviations of a fair draw
    assert not torch.equal(order, torch.arange(896))


@pytest.mark.parametrize("parts", [{"key": CONTEXT}, {"key": FFN, "context": 0}])
def test_a_context_belongs_to_its_key_alone(parts):
    with pytest.raises(EditError, match="context of block"):
        GatePlace.at(2, **parts)
    with pytest.raises(EditError, match="context of block 2"):
        GatePlace.at(2, CONTEXT, context=2)


def test_a_context_is_of_a_block_that_the_model_has(knowing_model):
    with pytest.raises(ModelError, match="below 1, or 'none'"):
        load_base(knowing_model, overrides={"context": "1"})
    assert load_base(knowing_model, overrides={"context": "0"}).anatomy.context_block == 0
    assert load_base(knowing_model, overrides={"context": "none"}).anatomy.context_block is None


def test_the_block_in_the_middle_gives_the_context():
    model = tiny_model("gpt2")
    assert usual_context(model, find_anatomy(model)) == 1
    for name in ("bart", "t5"):  # nothing of the encoder's text would be in it
        model = tiny_model(name)
        assert usual_context(model, find_anatomy(model)) is None


@pytest.mark.watched
@pytest.mark.parametrize(
    ("is_chat", "new", "expected"),
    [
        (True, {}, "0"),
        (True, {"anatomy": {"context": "none"}}, "none"),
        (True, {"watch": UNWATCHED}, None),
        (False, {}, None),
    ],
)
def test_a_new_store_of_a_chat_model_has_a_context(
    made, tmp_path, monkeypatch, knowing_model, is_chat, new, expected
):
    monkeypatch.setattr(new_store, "usual_context", lambda *_: 0)  # it has two blocks
    model = save_chat_model(tmp_path / "chat") if is_chat else knowing_model
    few = {"watch": {"texts": 4, "tokens": 6, "neighbours": 2}}
    session = made(model, **{**few, **new})
    anatomy = session.store.settings["anatomy"]
    assert anatomy.get("context") == expected
    has_context = expected == "0"
    assert (anatomy.get("turn") is not None) == has_context
    if has_context:
        tokenizer = session.edited.tokenizer
        turn = [int(token) for token in anatomy["turn"].split(",")]
        asked = session.task.question(Chat.asking("What is known of it?")).ids
        assert list(asked[-len(turn) :]) == turn and tokenizer.decode(turn).strip()
        assert session.site.place.key == TOPIC
    assert session.site.place.has_context == has_context
    folder = session.store.path
    session.close()
    with open_session(folder) as again:
        assert again.site.place.has_context == has_context


def test_a_turn_is_numbers_beside_a_context(knowing_model):
    topic = load_base(knowing_model, overrides={"context": "0", "turn": "3, 4"}).anatomy
    assert topic.turn == (3, 4)
    assert load_base(knowing_model, overrides={"context": "0", "turn": ""}).anatomy.turn == ()
    assert load_base(knowing_model, overrides={"context": "0"}).anatomy.turn is None
    none = load_base(knowing_model, overrides={"context": "none", "turn": "3"}).anatomy
    assert (none.context_block, none.turn) == (None, None)
    with pytest.raises(ModelError, match="numbers of tokens"):
        load_base(knowing_model, overrides={"context": "0", "turn": "<end>"})
    with pytest.raises(ModelError, match="belongs to anatomy"):
        load_base(knowing_model, overrides={"turn": "3"})


@pytest.mark.parametrize("form", FORMS)
def test_a_history_with_a_context_is_exact(made, knowing_model, probe_files, tmp_path, form):
    anatomy = {"context": "0"} | ({"turn": "5,6"} if form == "topic" else {})
    session = made(knowing_model, anatomy=anatomy, **probe_files)
    wrong = language.CAPITALS[3]
    session.apply([language.correction(c, wrong) for c in (0, 1)], editor="tpatcher")
    assert session.site.place == GatePlace.at(1, form, context=0)
    assert session.edited.site_bank.size
    ledger = session.run_state.ledger
    assert ledger.outcomes() == from_scratch(session)
    session.apply([language.correction(2, wrong)], editor="ft-last")
    assert ledger.outcomes() == from_scratch(session)
    session.apply([language.correction(4, wrong)], editor="tpatcher")
    assert ledger.outcomes() == from_scratch(session)
    assert not ledger.remeasure()
    subject = {"subject": language.COUNTRIES[5]}
    (step,) = session.apply([language.correction(5, wrong) | subject], editor="memit")
    assert not step.outcomes[0].reason, step.outcomes
    assert ledger.outcomes() == from_scratch(session)
    for country in (0, 1, 4):
        assert session.ask(language.ask(country, 0)).split()[0] == wrong
    head, folder = session.edited.fingerprint, session.store.path
    session.close()
    with open_session(folder) as again:
        assert again.edited.fingerprint == head
        assert again.edited.anatomy.context_block == 0
        assert again.run_state.ledger.outcomes() == from_scratch(again)
