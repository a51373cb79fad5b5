"""Dense patches: any parameter, in order with other kinds, undone without a trace, and followed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from continual.anatomy import find_anatomy
from continual.base import PretrainedBase
from continual.errors import EditError, ModelError, SharedPatch
from continual.model import EditedModel
from continual.passes.partial import capture_answers
from continual.passes.site_pass import TRACED_AFTER, SitePass
from continual.patches import pack, unpack
from continual.patches.dense import DensePatch
from continual.patches.low_rank import Factors, FfnLowRankPatch, LowRankPatch
from continual.patches.weight_sums import ParameterSums, WeightSums, summed
from continual.session import Session
from tests import tiny_language as language
from tests.tiny_models import FFN_WIDTH, WIDTH, tiny_inputs, tiny_model

MODELS = ["gpt2", "llama", "gpt-neox", "opt", "bart", "t5", "bert-labels"]
DOWN = "transformer.h.1.mlp.c_proj.weight"


def edited(name: str = "gpt2", dtype: torch.dtype = torch.float32) -> EditedModel:
    """A tiny model with nothing on it."""
    model = tiny_model(name).to(dtype)
    return EditedModel(PretrainedBase(model, language.tokenizer(), find_anatomy(model), "base"))


def dense(
    model: EditedModel, *paths: str, seed: int = 0, owners: tuple[str, ...] = ("r",)
) -> DensePatch:
    """A small difference for these parameters, or all."""
    draw = torch.Generator().manual_seed(seed)
    every = {name: p for name, p in model.model.named_parameters() if name in (paths or (name,))}
    assert every
    deltas = {n: 0.1 * torch.randn(p.shape, generator=draw) for n, p in every.items()}
    return DensePatch(deltas, {name: model.block_of(name) for name in deltas}, owners)


def low_rank(seed: int, block: int = 1) -> FfnLowRankPatch:
    draw = torch.Generator().manual_seed(seed)
    left = torch.randn(FFN_WIDTH, 2, generator=draw)
    right = 0.1 * torch.randn(2, WIDTH, generator=draw)
    return FfnLowRankPatch.of({block: Factors(left, right)})


def weights(model: EditedModel) -> list[Tensor]:
    return [parameter.clone() for parameter in model.model.parameters()]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(itertools.starmap(torch.equal, zip(found, expected, strict=True)))


# --- on and off -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_base_plus_the_difference_and_then_base_again(name):
    model = edited(name)
    before = weights(model)
    patch = dense(model)
    with model:
        model.put([patch])
        for path, parameter in model.model.named_parameters():
            index = [n for n, _ in model.model.named_parameters()].index(path)
            assert torch.equal(parameter, before[index] + patch.deltas[path])
        assert len(patch.deltas) == len(before)  # what is tied counts once
        model.take_off(0)
        assert same(weights(model), before)
        model.put([patch])
    assert same(weights(model), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_sum_is_kept_in_float32(dtype):
    model = edited(dtype=dtype)
    before = weights(model)
    one, two = dense(model, seed=1), dense(model, seed=2)
    with model:
        model.put([one])
        model.put([two])
        for path, parameter in model.model.named_parameters():
            base = before[[n for n, _ in model.model.named_parameters()].index(path)]
            total = (base.float() + one.deltas[path]) + two.deltas[path]
            assert torch.equal(parameter, total.to(dtype))
        model.take_off(0)
        assert same(weights(model), before)


def test_low_rank_and_dense_patches_of_one_matrix_compose_in_their_order():
    model = edited()
    expected = model.model.get_parameter(DOWN).detach().numpy().copy()  # [d_ff, d]: a Conv1D
    patches = [low_rank(1), dense(model, DOWN), low_rank(2)]
    sums = []
    for patch in patches:
        if isinstance(patch, DensePatch):
            expected = expected + patch.deltas[DOWN].numpy()
        else:
            left, right = patch.factors["1"].left.numpy(), patch.factors["1"].right.numpy()
            for column in range(left.shape[1]):
                expected = expected + left[:, column : column + 1] * right[column : column + 1]
        sums.append(expected.astype(np.float32))
    with model:
        for patch, wanted in zip(patches, sums, strict=True):
            model.put([patch])
            assert (model.model.get_parameter(DOWN).numpy() == wanted).all()
        for depth in (2, 1):
            model.take_off(depth)
            assert (model.model.get_parameter(DOWN).numpy() == sums[depth - 1]).all()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_down_matrix_is_one_object_by_its_block_and_by_its_path(name):
    model = edited(name)
    path = model.anatomy.down_path(1)
    weight = model.weight(1)
    assert model.parameter(path) is weight
    assert weight.sum.shape == (FFN_WIDTH, WIDTH)
    assert torch.equal(weight.turned(weight.base), model.model.get_parameter(path))


def test_tied_parameters_are_one_and_cannot_be_named_twice():
    model = edited()
    before = weights(model)
    assert model.parameter("lm_head.weight") is model.parameter("transformer.wte.weight")
    delta = torch.ones_like(model.model.get_parameter("lm_head.weight"))
    twice = DensePatch(
        {"lm_head.weight": delta, "transformer.wte.weight": delta},
        {"lm_head.weight": 2, "transformer.wte.weight": 0},
    )
    with model:
        with pytest.raises(EditError, match="ties"):
            model.put([twice])
        assert same(weights(model), before) and model.depth == 0


@pytest.mark.parametrize(
    ("name", "path", "block"),
    [
        ("gpt2", "transformer.wte.weight", 0),
        ("gpt2", "transformer.wpe.weight", 0),
        ("gpt2", "lm_head.weight", 0),  # it is the embedding
        ("gpt2", "transformer.h.1.ln_1.bias", 1),
        ("gpt2", "transformer.ln_f.weight", 2),
        ("llama", "lm_head.weight", 2),
        ("llama", "model.norm.weight", 2),
        ("bart", "model.encoder.layers.3.fc2.weight", 0),
        ("bart", "model.decoder.layers.1.fc2.weight", 1),
        ("bert-labels", "classifier.weight", 2),
        ("bert-labels", "bert.pooler.dense.weight", 2),
        ("bert-labels", "bert.embeddings.LayerNorm.weight", 0),
    ],
)
def test_a_parameter_counts_for_the_first_block_that_it_has_an_effect_on(name, path, block):
    assert edited(name).block_of(path) == block


def test_the_state_is_named_by_the_patches_and_goes_back_with_them():
    model = edited()
    with model:
        states = [(model.fingerprint, model.rows_state, model.reach.blocks)]
        for patch in (dense(model, DOWN), dense(model, "transformer.wpe.weight"), dense(model)):
            model.put([patch])
            states.append((model.fingerprint, model.rows_state, model.reach.blocks))
        assert len({state[0] for state in states}) == len({state[1] for state in states}) == 4
        assert [sorted(state[2]) for state in states] == [[], [1], [0, 1], [0, 1, 2]]
        for depth in (2, 1, 0):
            model.take_off(depth)
            assert (model.fingerprint, model.rows_state, model.reach.blocks) == states[depth]


def test_the_bare_model_is_the_base_and_then_the_edited_one_again():
    model = edited()
    before = weights(model)
    with model:
        model.put([dense(model)])
        now = weights(model)
        with model.bare():
            assert same(weights(model), before)
            assert model.rows_state == "base"
        assert same(weights(model), now)


# --- what is let go -------------------------------------------------------------------------------


def test_what_has_settled_is_undone_whole_or_not_at_all():
    model = edited()
    before = weights(model)
    with model:
        model.put([dense(model, seed=1)])
        model.put([dense(model, seed=2)])
        model.settle()
        now = weights(model)
        with pytest.raises(ModelError, match="let go"):
            model.take_off(1)
        assert same(weights(model), now) and model.depth == 2  # nothing has happened
        model.put([dense(model, seed=3)])
        model.put([low_rank(1)])
        model.take_off(2)
        assert same(weights(model), now)
        model.take_off(0)
        assert same(weights(model), before)


def test_a_settled_state_and_one_that_is_built_anew_have_the_same_bits():
    settled, straight = edited(), edited()
    patches = [dense(settled, seed=1), low_rank(1), dense(settled, DOWN, seed=2), low_rank(2)]
    with settled, straight:
        for patch in patches:
            settled.put([patch])
            settled.settle()
            straight.put([patch])
        settled.put([dense(settled, seed=9)])
        settled.take_off(4)
        assert settled.fingerprint == straight.fingerprint
        assert same(weights(settled), weights(straight))


def test_a_snapshot_has_the_sums_and_leads_to_the_same_bits():
    model, other = edited(), edited()
    parts = [low_rank(1), dense(model, DOWN, seed=1), low_rank(2), low_rank(3, block=0)]
    parts.append(dense(model, "transformer.wpe.weight", seed=2))
    with model, other:
        for part in parts:
            model.put([part])
        together = [part for part in parts if isinstance(part, LowRankPatch)]
        blocks = {
            path: b for p in parts if isinstance(p, DensePatch) for path, b in p.blocks.items()
        }
        found = summed(together, blocks, model)
        assert [type(part) for part in found] == [FfnLowRankPatch, WeightSums, ParameterSums]
        assert list(found[1].tensors()) == ["1.sum"]  # the matrix that both kinds are in
        assert list(found[2].tensors()) == ["transformer.wpe.weight"]
        other.put_many(unpack(*pack(found)), model.fingerprint, model.rows_state)
        assert same(weights(other), weights(model))
        assert other.reach.blocks == model.reach.blocks


# --- files and errors -----------------------------------------------------------------------------


def test_it_comes_back_from_its_file_as_it_was():
    given = dense(edited(), DOWN, "transformer.wpe.weight", owners=("one", "two"))
    (found,) = unpack(*pack([given]))
    assert isinstance(found, DensePatch)
    assert (found.owners, found.blocks, found.rows) == (("one", "two"), given.blocks, 2)
    assert all(torch.equal(found.deltas[path], delta) for path, delta in given.deltas.items())
    assert found.reach.blocks == {0, 1} and found.norm() == given.norm()


def test_it_is_one_owners_or_cannot_be_taken_apart():
    alone, shared = dense(edited(), DOWN), dense(edited(), DOWN, owners=("a", "b", "c"))
    assert alone.without("r") is None and alone.without("x") is alone
    with pytest.raises(SharedPatch, match=r"b shares a dense patch with 2 others.*rollback"):
        shared.without("b")


def test_what_is_wrong_with_it_is_said():
    model = edited()
    good = dense(model, DOWN)
    for wrong in (torch.full((2, 2), torch.nan), torch.zeros(2, 2, dtype=torch.float64)):
        with pytest.raises(EditError, match=r"h\.1\.mlp"):
            DensePatch({DOWN: wrong}, {DOWN: 1}).check()
    with pytest.raises(EditError, match="no parameters"):
        DensePatch({}, {}).check()
    with pytest.raises(EditError, match="owner twice"):
        good.owned_by(("a", "a"))
    with pytest.raises(EditError, match="not one of ours"):
        DensePatch.from_tensors({}, {"parameters": {DOWN: 1}})
    before = weights(model)
    for other, error in (
        (DensePatch({"lm_tail.weight": good.deltas[DOWN]}, {"lm_tail.weight": 0}), ModelError),
        (DensePatch({DOWN: torch.zeros(3, 3)}, {DOWN: 1}), EditError),
    ):
        with model, pytest.raises(error, match="another model"):
            model.put([good, other])
        assert model.depth == 0 and same(weights(model), before)


# --- what follows the weights ---------------------------------------------------------------------


def test_a_traced_pass_sees_every_parameter_that_changes():
    model = tiny_model("gpt2")
    anatomy = find_anatomy(model)
    fast = SitePass(model, anatomy)
    ids = {"input_ids": tiny_inputs(model)["input_ids"]}
    rows = torch.arange(0, ids["input_ids"].numel(), 4)
    for _ in range(TRACED_AFTER + 1):
        fast(ids, rows)
    assert fast._short._trace is not None
    edit = EditedModel(PretrainedBase(model, None, anatomy, "base"))
    with edit:
        edit.put([dense(edit)])
        for found, wanted in zip(
            fast(ids, rows), capture_answers(model, anatomy, ids, rows), strict=True
        ):
            assert torch.equal(found, wanted)


def follow(session: Session, patch: DensePatch) -> tuple[int, dict[str, bool]]:
    """How many outcomes turn with a patch on, and what a full measurement then finds otherwise."""
    session.edited.put([patch])
    turned = session.run_state.ledger.advance()
    return len(turned), session.run_state.ledger.remeasure()


def test_the_ledger_follows_a_patch_over_all_parameters_exactly_and_back(knowing):
    base, before = knowing.edited.fingerprint, weights(knowing.edited)
    outcomes = knowing.run_state.ledger.outcomes()
    found = [follow(knowing, dense(knowing.edited, seed=seed)) for seed in range(3)]
    assert found[0][0] > 0  # later ones may find nothing left to turn
    assert [otherwise for _, otherwise in found] == [{}, {}, {}]
    knowing.edited.take_off(0)
    knowing.run_state.ledger.advance()
    assert knowing.run_state.ledger.outcomes() == outcomes
    assert knowing.edited.fingerprint == base and same(weights(knowing.edited), before)


@pytest.mark.parametrize(
    "paths",
    [("lm_head.weight",), ("model.norm.weight",), ("model.layers.1.mlp.up_proj.weight",)],
)
def test_the_ledger_follows_the_head_and_the_norm_where_hidden_states_stay(
    made, tmp_path, probe_files, paths
):
    """Few enough rows that what was answered before is remembered."""
    directory = language.save_decoder(tmp_path / "llama", language.decoder("llama"))
    session = made(directory, **probe_files)
    right = session.run_state.ledger.rows[:5]
    before = session.site.logits(right.hidden).clone()
    _, otherwise = follow(session, dense(session.edited, *paths))
    assert otherwise == {}
    if "mlp" not in paths[0]:
        assert not torch.equal(session.site.logits(right.hidden), before)
