"""KnowledgeEditor: the low-rank form against the dense one, its constraint, and its edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.editors.ke import KeNetwork
from continual.editors.ke.network import BOUND, BOUND_MIN, MULTIPLIER_RATE
from continual.gradients.matrices import chosen_matrices
from continual.gradients.networks import NetworkInput
from continual.history.rehearsing import recompute
from continual.history.replaying import rebuild
from continual.patches import Patch
from continual.patches.gradient import GradientPatch
from continual.requests import Request
from continual.session import Session
from continual.watch.config import UNWATCHED
from tests import tiny_language as language
from tests.continual.conftest import Make
from tests.continual.gradients.networks import BOTH, file_of, maker, network_of, taught

PLAIN = {"solved": False, "scale_max": 1}


def request(country: int) -> Request:
    return Request.from_json(language.correction(country))


def dense_update(network: KeNetwork, path: str, edit: NetworkInput) -> Tensor:
    """σ(ν)·s·(g ⊙ a + b) [inputs, outputs], written out."""
    inputs, outputs = network.form.shapes[path]
    number = list(network.form.shapes).index(path)
    assert edit.condition is not None
    _, (last, _) = network.lstm(edit.condition[None])
    condition = torch.tanh(network.reading(torch.cat([last[0, 0], last[1, 0]])))
    vectors = network.heads[number](condition)
    alpha_out, rest = vectors[:outputs], vectors[outputs:]
    alpha_in, rest = rest[:inputs], rest[inputs:]
    beta_out, beta_in, nu = rest[:outputs], rest[outputs : outputs + inputs], rest[-1]
    rows = edit.rows[path].double()
    gradient = sum(torch.outer(row[:inputs], row[inputs:]) for row in rows)
    assert isinstance(gradient, Tensor)
    gradient = -gradient * outputs / gradient.norm()
    mask = torch.outer(1 + alpha_in, alpha_out.softmax(0))
    offset = torch.outer(beta_in, beta_out.softmax(0))
    step = torch.sigmoid(nu) * network.log_steps[number].exp()
    return step * (gradient * mask + offset)


@pytest.fixture
def edits(knowing: Session) -> list[NetworkInput]:
    return [edit.rows for edit in taught(knowing, maker(knowing, KeNetwork), 20, 21, 22)]


@pytest.fixture
def network(knowing: Session) -> KeNetwork:
    found = network_of(knowing, KeNetwork, chosen_matrices(knowing.edited, BOTH))
    assert isinstance(found, KeNetwork)
    return found


def test_the_low_rank_form_is_the_dense_one(network: KeNetwork, edits: list[NetworkInput]) -> None:
    for path, paths in network.side_paths(edits).items():
        for number, edit in enumerate(edits):
            assert network.factors(path, edit).left.shape[1] == len(edit.rows[path]) + 1
            found = (paths.left[number] @ paths.right[number]).double()
            expected = dense_update(network, path, edit)
            scale = float(expected.detach().abs().max())
            assert scale > 0
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale)


def test_the_condition_is_old_answer_new_answer_and_input(knowing: Session) -> None:
    asked = request(20)
    encoding = knowing.site.task.encode(asked.prompt, asked.target_new)
    found = KeNetwork.condition(knowing.site, encoding)
    logits = knowing.model(input_ids=torch.tensor([list(encoding.ids)])).logits[0]
    old = logits[list(encoding.positions)].argmax(-1).tolist()
    assert old != list(encoding.targets)
    tokenizer = knowing.edited.tokenizer
    marks = [tokenizer.encode(mark, add_special_tokens=False) for mark in (" >> ", " || ")]
    ids = [*old, *marks[0], *encoding.targets, *marks[1], *encoding.question.ids]
    table = knowing.model.get_input_embeddings().weight
    assert torch.equal(found, table[ids])


def test_a_gate_that_is_shut_leaves_the_model_bit_for_bit(
    unwatched: Session, network: KeNetwork, tmp_path: Path
) -> None:
    with torch.no_grad():
        network.log_steps.fill_(-torch.inf)
    table = {**file_of(unwatched, network, tmp_path / "ke.safetensors"), **PLAIN}
    before = {n: t.clone() for n, t in unwatched.model.state_dict().items()}
    assert apply(unwatched, table, 20) == ["failed"]
    assert all(torch.equal(t, before[n]) for n, t in unwatched.model.state_dict().items())


def test_the_multiplier_rises_while_the_bound_is_exceeded_and_falls_to_zero(
    network: KeNetwork,
) -> None:
    start = float(network.multiplier)
    network.follow(5.0 + BOUND)
    assert float(network.multiplier) == pytest.approx(start + 5 * MULTIPLIER_RATE)
    for _ in range(10):
        network.follow(BOUND - 10.0)
    assert float(network.multiplier) == 0.0
    one, kl = torch.tensor(2.0), torch.tensor(3.0)
    assert float(network.loss(one, kl)) == 2.0
    network.follow(1.0 + BOUND)
    assert float(network.loss(one, kl)) == pytest.approx(2.0 + MULTIPLIER_RATE * (3.0 - BOUND))


def test_the_bound_tightens_when_edits_succeed(network: KeNetwork) -> None:
    network.end_epoch(0.85)
    assert float(network.bound) == pytest.approx(BOUND)
    network.end_epoch(0.95)
    assert float(network.bound) == pytest.approx(0.8 * BOUND)
    for _ in range(100):
        network.end_epoch(1.0)
    assert float(network.bound) == pytest.approx(BOUND_MIN)


@pytest.fixture
def unwatched(made: Make, knowing_model: Path, probe_files: dict[str, Path]) -> Session:
    return made(knowing_model, "unwatched", watch=UNWATCHED, **probe_files)


def apply(session: Session, table: dict[str, Any], *countries: int) -> list[str]:
    run = session.settings(chain=("ke",), editors={"ke": table})
    steps = session.apply_requests([request(country) for country in countries], run)
    return [outcome.outcome for step in steps for outcome in step.outcomes]


def last_patch(session: Session) -> GradientPatch:
    parts: tuple[Patch, ...] = session.patches(session.head.patch)
    (part,) = parts
    assert isinstance(part, GradientPatch)
    return part


@pytest.mark.parametrize("solved", [True, False])
def test_a_history_is_rebuilt_and_made_again_to_the_same_bits(
    unwatched: Session, network: KeNetwork, tmp_path: Path, solved: bool
) -> None:
    table = file_of(unwatched, network, tmp_path / "ke.safetensors")
    table |= {"solved": solved, "margin": 0.0}
    assert "applied" in apply(unwatched, table, 20, 21, 22)
    patch = last_patch(unwatched)
    rows = next(iter(patch.gradient_rows.values()))
    assert bool(rows[-1].any()) is solved  # the column of b belongs to no token
    for matrix in chosen_matrices(unwatched.edited, BOTH):
        assert bool(matrix.past_rows.any(1).all())
    lineage = unwatched.store.lineage("head")
    assert all(state.is_same for state in rebuild(unwatched, lineage))
    assert all(step.is_same for step in recompute(unwatched, lineage))


def test_a_label_is_read_by_its_name(made: Make, models: dict[str, Path]) -> None:
    session = made(models["classification"], task={"name": "classification"})
    old, ask = language.part(3), language.ask(3)
    new = next(label for label in language.LABELS if label != old)
    encoding, words = session.task.encode(ask, new), session.task.tokens
    text = [*words(old), *words(">>"), *words(new), *words("||"), *encoding.question.ids]
    embeddings = session.model.get_input_embeddings().weight
    condition = KeNetwork.condition(session.site, encoding)
    assert torch.equal(condition, embeddings[text])
