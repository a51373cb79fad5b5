"""Low-rank patches of any matrix, by its path; and the files of those that were known by block."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from continual.base import load_base
from continual.errors import EditError, ModelError
from continual.model import EditedModel
from continual.patches import Patch, pack, unpack
from continual.patches.dense import DensePatch
from continual.patches.low_rank import Factors, FfnLowRankPatch, LowRankPatch
from continual.patches.weight_sums import MatrixSums, ParameterSums, WeightSums, summed
from continual.recheck.ledger import Ledger, LedgerEntry
from continual.site import Site
from continual.snapshots import Gathered, Snapshot
from continual.tasks import make_task
from store import BlobRef
from store.blobs import Blobs
from tests.continual.test_dense import dense, same, weights
from tests.continual.test_low_rank import edited
from tests.tiny_language import ask, capital

MODELS = ["gpt2", "gptj", "gpt-neox", "opt", "llama", "bart", "t5", "bert-labels"]
UP = "transformer.h.1.mlp.c_fc.weight"
DOWN = "transformer.h.1.mlp.c_proj.weight"
GOLDEN = Path(__file__).parent / "golden" / "low-rank.safetensors"
GOLDEN_BLOB = "f457ae5919d6f347c2f1d66f722da89e43b17317f54c70187213ee6bc23f41af"
GOLDEN_STATE = "4edf0a20c32f42b61be4d2f2d55f63a09b8ad284f3670a1b0fb8d65e1a174105"
"""The state that the golden file's parts lead to, as the version that wrote them named it."""


def layers(model: EditedModel) -> dict[str, nn.Module]:
    """The linear and embedding layers whose matrices are tied to no other, by parameter path."""
    kinds = (nn.Linear, Conv1D, nn.Embedding)
    every = {f"{n}.weight": m for n, m in model.model.named_modules() if isinstance(m, kinds)}
    names = [n for n, _ in model.model.named_parameters(remove_duplicate=False)]
    count = {id(m.weight): 0 for m in every.values()}
    for name in names:
        parameter = model.model.get_parameter(name)
        if id(parameter) in count:
            count[id(parameter)] += 1
    return {path: module for path, module in every.items() if count[id(module.weight)] == 1}


def inputs_of(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Inputs of a layer, and the rows [n, inputs] that its matrix multiplies for them."""
    draw = torch.Generator().manual_seed(5)
    if isinstance(module, nn.Embedding):
        ids = torch.randint(0, module.num_embeddings, (6,), generator=draw)
        rows = nn.functional.one_hot(ids, module.num_embeddings)
        return ids, rows.double()
    width = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
    rows = torch.randn(6, width, generator=draw)
    return rows, rows.double()


def factors(inputs: int, outputs: int, rank: int = 2, seed: int = 0) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    left = 0.3 * torch.randn(inputs, rank, generator=draw)
    return Factors(left, 0.3 * torch.randn(rank, outputs, generator=draw))


def by_path(model: EditedModel, *paths: str, seed: int = 0, rank: int = 2) -> LowRankPatch:
    made = {p: factors(*model.matrix(p).sum.shape, rank, seed + i) for i, p in enumerate(paths)}
    return LowRankPatch(made, {path: model.block_of(path) for path in paths})


def forward(module: nn.Module, inputs: Tensor) -> Tensor:
    """A layer's own product, without what a subclass makes of its inputs first."""
    if isinstance(module, nn.Embedding):
        return nn.functional.embedding(inputs, module.weight)
    return module(inputs)


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_adds_the_product_of_its_inputs_and_the_factors(name):
    model = edited(name)
    every = layers(model)
    assert len(every) > 6
    asked = {path: inputs_of(module) for path, module in every.items()}
    before = {path: forward(m, asked[path][0]).double() for path, m in every.items()}
    patch = by_path(model, *every)
    bare = weights(model)
    with model:
        model.put([patch])
        for path, module in every.items():
            given = patch.factors[path]
            expected = before[path] + asked[path][1] @ given.left.double() @ given.right.double()
            found = forward(module, asked[path][0]).double()
            assert (found - expected).abs().max() <= 2e-6 * expected.abs().max(), path
        model.take_off(0)
        assert same(weights(model), bare)


def test_each_element_is_a_sum_in_the_order_of_the_columns_in_a_linear_layer_too():
    model = edited("llama")
    path = "model.layers.1.self_attn.v_proj.weight"
    patch = by_path(model, path, rank=3)
    left, right = (t.numpy() for t in (patch.factors[path].left, patch.factors[path].right))
    expected = model.model.get_parameter(path).numpy().T.copy()
    for column in range(left.shape[1]):
        expected = expected + left[:, column : column + 1] * right[column : column + 1]
    with model:
        model.put([patch])
        assert (model.model.get_parameter(path).numpy().T == expected).all()


def test_an_ffn_output_matrix_has_the_same_bytes_by_its_path_and_by_its_block():
    one, other = edited(), edited()
    given = by_path(one, DOWN)
    with one, other:
        one.put([given])
        other.put([FfnLowRankPatch.of({1: given.factors[DOWN]})])
        assert same(weights(one), weights(other))
        assert one.matrix(DOWN) is one.weight(1)
        assert one.fingerprint != other.fingerprint  # their files are of different kinds


def test_it_reaches_from_the_block_of_its_lowest_matrix():
    model = edited()
    paths = (UP, "transformer.h.2.attn.c_attn.weight", "transformer.wpe.weight")
    assert by_path(model, *paths[:2]).reach.blocks == {1, 2}
    assert by_path(model, *paths).reach.blocks == {0, 1, 2}


# --- what it is refused for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("transformer.wte.weight", r"tied: lm_head\.weight is the same"),
        ("lm_head.weight", r"tied: transformer\.wte\.weight is the same"),
        ("transformer.h.1.mlp.c_fc.bias", "no matrix"),
        ("transformer.h.7.mlp.c_fc.weight", "another model"),
        ("transformer.stray", "no weight of a linear layer"),
    ],
)
def test_a_matrix_that_cannot_carry_one_is_named_and_nothing_changes(path, message):
    model = edited()
    model.model.transformer.register_parameter("stray", nn.Parameter(torch.ones(3, 3), False))
    bare = weights(model)
    good = by_path(model, UP)
    with model:
        with pytest.raises(ModelError, match=message) as found:
            model.put([good, LowRankPatch({path: factors(3, 3)}, {path: 1})])
        assert path in str(found.value)
        assert model.depth == 0 and same(weights(model), bare)


def test_a_matrix_that_two_layers_share_is_refused():
    model = edited("llama")
    blocks = model.model.model.layers
    blocks[2].mlp.up_proj.weight = blocks[1].mlp.up_proj.weight
    path = "model.layers.1.mlp.up_proj.weight"
    with model, pytest.raises(ModelError, match=r"layers\.2\.mlp\.up_proj\.weight is the same"):
        model.put([LowRankPatch({path: factors(16, 40)}, {path: 1})])


def test_factors_the_other_way_round_are_refused():
    model = edited("llama")
    path = "model.layers.1.mlp.up_proj.weight"
    turned = factors(*reversed(model.matrix(path).sum.shape))
    with model, pytest.raises(EditError, match="another model"):
        model.put([LowRankPatch({path: turned}, {path: 1})])


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (LowRankPatch({}, {}), "no matrices"),
        (LowRankPatch({UP: factors(3, 4)}, {}), "where they act"),
        (LowRankPatch({UP: Factors(torch.ones(3, 2), torch.ones(3, 4))}, {UP: 1}), r"h\.1\.mlp"),
        (LowRankPatch({UP: factors(3, 4)}, {UP: 1}, {UP: torch.ones(2, 4)}), r"h\.1\.mlp.*keys"),
        (LowRankPatch({UP: Factors(torch.full((3, 1), torch.nan), torch.ones(1, 4))}, {UP: 1}), UP),
    ],
)
def test_what_is_wrong_with_its_shapes_is_said(patch, message):
    with pytest.raises(EditError, match=message):
        patch.check()


# --- files ----------------------------------------------------------------------------------------


def test_it_comes_back_from_its_file_as_it_was():
    model = edited()
    given = by_path(model, UP, "transformer.h.0.attn.c_proj.weight")
    keys = {UP: torch.ones(3, 16)}
    given = LowRankPatch(given.factors, given.blocks, keys).owned_by(("a", "b"))
    (found,) = unpack(*pack([given]))
    assert type(found) is LowRankPatch
    assert (found.blocks, found.owners, found.meta()) == (given.blocks, ("a", "b"), given.meta())
    assert found.tensors().keys() == given.tensors().keys()
    assert all(torch.equal(found.tensors()[name], t) for name, t in given.tensors().items())


def test_older_versions_know_neither_its_kind_nor_that_of_its_sums():
    old = {"neuron", "low-rank", "dense", "weight-sums", "parameter-sums", "memory"}
    assert LowRankPatch.kind not in old and MatrixSums.kind not in old
    assert {FfnLowRankPatch.kind, WeightSums.kind} <= old


def test_a_requests_columns_go_and_the_others_stay():
    model = edited()
    given = by_path(model, UP, DOWN, rank=3).owned_by(("a", "b", "a"))
    less = given.without("a")
    assert less is not None and less.owners == ("b",) and less.blocks == given.blocks
    for path, found in less.factors.items():
        assert torch.equal(found.left, given.factors[path].left[:, 1:2])
        assert torch.equal(found.right, given.factors[path].right[1:2])
    assert given.without("c") is given and less.without("b") is None


def test_a_file_of_earlier_versions_leads_to_the_state_that_they_named(tmp_path):
    target = tmp_path / "patches" / GOLDEN_BLOB[:2] / f"{GOLDEN_BLOB}.safetensors"
    target.parent.mkdir(parents=True)
    target.write_bytes(GOLDEN.read_bytes())
    blobs = Blobs(tmp_path / "patches")
    parts = unpack(*blobs.get(BlobRef(GOLDEN_BLOB, target.stat().st_size)))
    assert [type(part) for part in parts] == [FfnLowRankPatch] * 2
    assert blobs.put(*pack(parts)).sha256 == GOLDEN_BLOB  # and is written as it was
    for name in ("gpt2", "llama"):
        model = edited(name)
        for block in range(3):
            plain = torch.arange(640).reshape(40, 16) / 64.0 - block
            model.anatomy.down_weight(model.model, block).copy_(plain)
        with model:
            for part in parts:
                model.put([part])
            assert model.fingerprint == GOLDEN_STATE


# --- sums -----------------------------------------------------------------------------------------


def interleaved(model: EditedModel) -> list[Patch]:
    """Patches of all kinds of parameters, of which four are in one matrix."""
    first = by_path(model, DOWN, UP, seed=1, rank=1)
    keyed = LowRankPatch(first.factors, first.blocks, {DOWN: torch.full((2, 40), 1.0)})
    of_block = FfnLowRankPatch.of(
        {1: factors(40, 16, seed=7), 0: factors(40, 16, seed=8)}, {1: torch.full((1, 40), 2.0)}
    )
    last = by_path(model, DOWN, seed=4, rank=30)
    wide = LowRankPatch(last.factors, last.blocks, {DOWN: torch.full((1, 40), 3.0)})
    path = "transformer.h.2.attn.c_attn.weight"
    return [keyed, of_block, dense(model, DOWN, seed=2), wide, by_path(model, path, rank=40)]


def test_a_snapshot_leads_to_the_same_bits_and_keys():
    model, other = edited(), edited()
    parts = interleaved(model)
    gathered = Gathered()
    with model, other:
        for part in parts:
            model.put([part])
        gathered.take(parts)
        snapshot = Snapshot.of(gathered, model)
        kinds = [type(part) for part in snapshot.parts]
        assert kinds == [FfnLowRankPatch, LowRankPatch, MatrixSums]
        read = Snapshot.from_file(*snapshot.to_file())
        assert read.is_same(snapshot)
        other.put_many(read.parts, snapshot.fingerprint, snapshot.rows_state)
        assert same(weights(other), weights(model))
        assert other.reach == model.reach
        assert torch.equal(other.matrix(DOWN).keys, model.matrix(DOWN).keys)
        assert other.matrix(DOWN).keys[:, 0].tolist() == [1.0, 1.0, 2.0, 3.0]


def test_two_snapshots_on_each_other_lead_to_the_same_bits():
    model, other = edited(), edited()
    first, second = interleaved(model), [dense(model, DOWN, seed=9), by_path(model, DOWN, seed=5)]
    snapshots = []
    with model, other:
        for parts in (first, second):
            gathered = Gathered()
            for part in parts:
                model.put([part])
            gathered.take(parts)
            snapshots.append(Snapshot.of(gathered, model))
        every = list(itertools.chain.from_iterable(s.parts for s in snapshots))
        other.put_many(every, model.fingerprint, model.rows_state)
        assert same(weights(other), weights(model))
        assert torch.equal(other.matrix(DOWN).keys, model.matrix(DOWN).keys)


@pytest.mark.parametrize(("rank", "kind"), [(2, LowRankPatch), (40, MatrixSums)])
def test_factors_stay_factors_where_they_take_less_room(rank, kind):
    model = edited()
    with model:
        patch = by_path(model, UP, rank=rank)
        model.put([patch])
        (found,) = summed([patch], {}, model)
        assert type(found) is kind


def test_a_matrix_that_dense_patches_alone_are_in_stays_a_parameter_sum():
    model = edited()
    with model:
        patch = dense(model, UP)
        model.put([patch])
        assert isinstance(patch, DensePatch)
        (found,) = summed([], patch.blocks, model)
        assert type(found) is ParameterSums


# --- the ledger -----------------------------------------------------------------------------------


def test_the_ledger_finds_what_measuring_from_scratch_finds(knowing_model):
    model = EditedModel(load_base(knowing_model))
    with model:
        site = Site(model, make_task(model.base, {}))
        ledger = Ledger(site)
        asked = [(c, p) for c in range(30) for p in range(3)]
        ledger.register(
            [
                LedgerEntry("test", "test", i, site.task.encode(ask(c, p), capital(c)))
                for i, (c, p) in enumerate(asked)
            ]
        )
        entries = [entry.encoding for entry in ledger.entries]
        turned = 0
        paths = [path for path in layers(model) if f"{model.anatomy.blocks}." in path]
        for seed, path in enumerate(paths):
            patch = by_path(model, path, seed=seed)
            model.put([patch])
            turned += len(ledger.advance())
            assert list(ledger.outcomes().values()) == site.judge_in_full(entries), path
            model.take_off(0)
            turned += len(ledger.advance())
        assert turned > 0
