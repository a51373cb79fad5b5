"""Low-rank patches: the dense update, undone without a trace, and followed by the ledger."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from continual.anatomy import find_anatomy
from continual.base import PretrainedBase, load_base
from continual.errors import EditError, ModelError
from continual.model import EditedModel
from continual.passes.partial import logits_of
from continual.patches import pack, unpack
from continual.patches.low_rank import Factors, FfnLowRankPatch
from continual.patches.neuron import NeuronPatch
from continual.queries.memory import ProtectedQueries
from continual.recheck.ledger import Ledger, LedgerEntry
from continual.site import Site
from continual.tasks import make_task
from tests import tiny_language as language
from tests.tiny_language import ask, capital
from tests.tiny_models import FFN_WIDTH, WIDTH, tiny_inputs, tiny_model

DECODERS = ["gpt2", "opt", "llama", "gpt-neox"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def edited(name: str = "gpt2", dtype: torch.dtype = torch.float32) -> EditedModel:
    """A tiny model with nothing on it."""
    model = tiny_model(name).to(dtype)
    return EditedModel(PretrainedBase(model, language.tokenizer(), find_anatomy(model), "base"))


def factors(seed: int, rank: int = 3, shape: tuple[int, int] = (FFN_WIDTH, WIDTH)) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    left = torch.randn(shape[0], rank, generator=draw)
    return Factors(left, 0.1 * torch.randn(rank, shape[1], generator=draw))


def patch(seed: int, *blocks: int, shape: tuple[int, int] = (FFN_WIDTH, WIDTH)) -> FfnLowRankPatch:
    return FfnLowRankPatch.of({b: factors(seed + b, shape=shape) for b in blocks or (0,)})


def weights(model: EditedModel) -> list[Tensor]:
    return [parameter.clone() for parameter in model.model.parameters()]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(itertools.starmap(torch.equal, zip(found, expected, strict=True)))


# --- on and off -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_it_is_the_dense_update(name):
    model = edited(name)
    given = patch(1, 0, 2)
    dense = {int(b): f.left.double() @ f.right.double() for b, f in given.factors.items()}
    before = {b: model.anatomy.down_weight(model.model, b).double() for b in (0, 1, 2)}
    with model:
        model.put([given])
        for block in (0, 1, 2):
            now = model.anatomy.down_weight(model.model, block).double()
            expected = before[block] + dense.get(block, torch.zeros(()))
            assert (now - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_each_element_is_a_sum_in_the_order_of_the_columns():
    model = edited()
    given = patch(1)
    left, right = given.factors["0"].left.numpy(), given.factors["0"].right.numpy()
    expected = model.anatomy.down_weight(model.model, 0).clone().numpy()
    for column in range(left.shape[1]):
        expected = expected + left[:, column : column + 1] * right[column : column + 1]
    with model:
        model.put([given])
        assert (model.anatomy.down_weight(model.model, 0).numpy() == expected).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_going_back_gives_the_bytes_of_never_having_gone_forward(dtype):
    model = edited("llama", dtype)
    bare = weights(model)
    with model:
        model.put([patch(1, 0, 1)])
        first = weights(model)
        name = model.fingerprint
        for seed in (2, 3):
            model.put([patch(seed, 1, 2)])
        third = weights(model)
        last = model.fingerprint
        model.take_off(1)
        assert same(weights(model), first) and model.fingerprint == name
        for seed in (2, 3):
            model.put([patch(seed, 1, 2)])
        assert same(weights(model), third) and model.fingerprint == last
        model.take_off(0)
        assert same(weights(model), bare) and model.fingerprint == "base"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_small_patches_add_up(dtype):
    model = edited("gpt2", dtype)
    tiny = FfnLowRankPatch.of({0: Factors(torch.full((FFN_WIDTH, 1), 1e-4), torch.ones(1, WIDTH))})
    before = model.anatomy.down_weight(model.model, 0).double().clone()
    with model:
        for _ in range(1000):
            model.put([tiny])
        moved = model.anatomy.down_weight(model.model, 0).double() - before
    assert (moved - 0.1).abs().max() < 0.02


def test_outside_of_the_block_the_base_is_bare():
    model = edited()
    bare = weights(model)
    with model:
        model.put([patch(1), NeuronPatch(2, *_one_neuron())])
        shown = weights(model)
        assert not same(shown, bare)
        with model.bare():
            assert same(weights(model), bare)
            assert model.bank(2).size == 0
        assert same(weights(model), shown)
        assert model.bank(2).size == 1
    assert same(weights(model), bare)
    with model:
        assert same(weights(model), shown)
    model.put([patch(2)])
    assert same(weights(model), bare)


def _one_neuron() -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones(1, WIDTH), torch.ones(1), torch.ones(1, WIDTH)


def test_the_rows_state_changes_with_matrices_alone():
    model = edited()
    states = [model.rows_state]
    for part in (patch(1), NeuronPatch(2, *_one_neuron()), patch(2)):
        model.put([part])
        states.append(model.rows_state)
    assert states[0] != states[1] == states[2] != states[3]
    model.take_off(2)
    assert model.rows_state == states[1] and model.reach.blocks == {0}
    model.take_off(0)
    assert model.rows_state == states[0] and not model.reach.blocks


def test_the_keys_that_come_with_patches_come_and_go_with_them():
    model = edited()
    keys = torch.arange(2.0 * FFN_WIDTH).reshape(2, FFN_WIDTH)
    model.put([FfnLowRankPatch.of({0: factors(1)}, {0: keys})])
    model.put([patch(2)])
    model.put([FfnLowRankPatch.of({0: factors(3)}, {0: keys + 1})])
    assert torch.equal(model.weight(0).keys, torch.cat([keys, keys + 1]))
    model.take_off(2)
    assert torch.equal(model.weight(0).keys, keys)
    model.take_off(0)
    assert model.weight(0).keys.shape == (0, FFN_WIDTH)


# --- files and faults -----------------------------------------------------------------------------


def test_it_comes_back_from_its_file():
    given = FfnLowRankPatch.of({2: factors(1), 0: factors(2)}, {2: torch.ones(4, FFN_WIDTH)})
    (found,) = unpack(*pack([given]))
    assert isinstance(found, FfnLowRankPatch)
    assert found.reach.blocks == {2, 0}
    assert found.meta() == given.meta()
    assert {n: t.tolist() for n, t in found.tensors().items()} == {
        n: t.tolist() for n, t in given.tensors().items()
    }


def test_its_norm_is_that_of_the_dense_update():
    given = patch(1, 0, 1)
    dense = [(f.left @ f.right).norm().item() for f in given.factors.values()]
    assert given.norm() == pytest.approx(max(dense), rel=1e-5)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Factors(torch.ones(FFN_WIDTH, 2), torch.ones(3, WIDTH)), "does not fit together"),
        (Factors(torch.ones(FFN_WIDTH), torch.ones(1, WIDTH)), "does not fit together"),
        (Factors(torch.full((FFN_WIDTH, 1), torch.nan), torch.ones(1, WIDTH)), "finite"),
        (Factors(torch.ones(FFN_WIDTH, 1).double(), torch.ones(1, WIDTH)), "float32"),
    ],
)
def test_what_does_not_fit_or_is_no_number_is_refused(broken, message):
    with pytest.raises(EditError, match=message):
        FfnLowRankPatch.of({0: broken}).check()


def test_keys_of_another_width_are_refused():
    with pytest.raises(EditError, match="keys"):
        FfnLowRankPatch.of({0: factors(1)}, {0: torch.ones(2, FFN_WIDTH + 1)}).check()


def test_a_patch_for_another_model_is_refused_and_changes_nothing():
    model = edited()
    bare = weights(model)
    with model:
        with pytest.raises(EditError, match="another model"):
            model.put([patch(1, shape=(FFN_WIDTH + 1, WIDTH))])
        with pytest.raises(ModelError, match="block 7"):
            model.put([patch(1, 7)])
        assert same(weights(model), bare)


# --- what follows the matrices --------------------------------------------------------------------


@pytest.fixture(scope="module")
def knowing(knowing_model: Path) -> EditedModel:
    return EditedModel(load_base(knowing_model))


def ledger_of(site: Site) -> Ledger:
    ledger = Ledger(site)
    asked = [(c, p) for c in range(30) for p in range(3)]
    ledger.register(
        [
            LedgerEntry("test", "test", i, site.task.encode(ask(c, p), capital(c)))
            for i, (c, p) in enumerate(asked)
        ]
    )
    return ledger


@pytest.mark.parametrize("block", [0, 1])
def test_the_ledger_finds_what_measuring_from_scratch_finds(knowing, block):
    shape = (knowing.anatomy.ffn_width, knowing.anatomy.width)
    with knowing:
        site = Site(knowing, make_task(knowing.base, {}))
        ledger = ledger_of(site)
        turned = 0
        for seed in range(6):
            if seed % 2:
                key = ledger.rows.query[seed : seed + 1]
                strong = NeuronPatch(1, key / key.square().sum(), torch.zeros(1), 20 * key)
                knowing.put([strong])
            else:
                knowing.put([patch(seed, block, shape=shape)])
            turned += len(ledger.advance())
            entries = [entry.encoding for entry in ledger.entries]
            assert list(ledger.outcomes().values()) == site.judge_in_full(entries)
        assert 0 < turned
        knowing.take_off(0)


def test_probes_that_come_between_two_weight_edits_are_followed_too(knowing):
    shape = (knowing.anatomy.ffn_width, knowing.anatomy.width)
    with knowing:
        site = Site(knowing, make_task(knowing.base, {}))
        ledger = ledger_of(site)
        knowing.put([patch(1, 1, shape=shape)])
        ledger.advance()
        late = [LedgerEntry("late", "edit", 0, site.task.encode(ask(3, 3), capital(3)))]
        ledger.register(late)
        knowing.put([patch(2, 1, shape=shape)])
        ledger.advance()
        knowing.put([patch(3, 0, shape=shape)])  # below the block that the probes are kept at
        ledger.advance()
        entries = [entry.encoding for entry in ledger.entries]
        assert list(ledger.outcomes().values()) == site.judge_in_full(entries)
        assert torch.allclose(ledger.rows.hidden, site.rows_in_passes(entries).hidden, atol=1e-4)
        knowing.take_off(0)


@pytest.mark.parametrize("name", DECODERS)
def test_rows_from_a_recorded_block_are_those_of_whole_passes(name):
    from continual.passes.partial import capture_site, record, rows_from

    model = edited(name)
    inputs = tiny_inputs(model.model, padded=True)
    with model:
        recording = record(model.model, model.anatomy, inputs, [1])
        model.put([patch(1, 1)])
        found = rows_from(model.model, model.anatomy, recording, 1)
        whole = capture_site(model.model, model.anatomy, inputs, model.anatomy.last)
        assert all(map(torch.equal, found, whole))
        assert logits_of(model.model, inputs).isfinite().all()


def test_a_memory_that_is_captured_again_keeps_what_was_contradicted_out():
    draw = torch.Generator().manual_seed(0)
    training = torch.randn(10, 4, generator=draw)
    memory = ProtectedQueries(training)
    memory.contradict([2, 5])
    memory.remember("a", torch.ones(2, 4))
    memory.remember("b", torch.zeros(1, 4))
    memory.recapture(training + 1, {"a": torch.full((2, 4), 3.0), "b": torch.full((1, 4), 4.0)})
    kept = torch.tensor([0, 1, 3, 4, 6, 7, 8, 9])
    assert torch.equal(memory.training, training[kept] + 1)
    assert torch.equal(memory.mean(), (training + 1).mean(0))
    memory.forget("a")
    assert memory.owners == ("b",) and memory.edits.tolist() == [[4.0] * 4]
