"""MALMEN: its network, its system and their gradients against slow ones; batches in a history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from continual.editors.malmen import Malmen, MalmenConfig, MalmenNetwork
from continual.gradients.config import GradientConfig
from continual.gradients.matrices import chosen_matrices
from continual.gradients.networks import NetworkForm
from continual.history.rehearsing import recompute
from continual.history.replaying import rebuild
from continual.patches.gradient import GradientPatch
from continual.proposals import Edit, EditContext
from continual.requests import Request
from continual.session import Session
from continual.watch.config import UNWATCHED
from tests import tiny_language as language
from tests.continual.conftest import Make
from tests.continual.gradients.networks import BOTH, file_of, maker, network_of, taught

LAST = GradientConfig(blocks=(1,), sides="down")
PUBLISHED = {"moment_weight": 0.0, "memory": False, "scale_max": 1}


def request(country: int) -> Request:
    return Request.from_json(language.correction(country))


def slow_shifts(network: MalmenNetwork, path: str, rows: Tensor) -> Any:
    """−η·(k·k̃)·g̃ by numpy, row by row."""
    names = list(network.form.shapes)
    shape = network.form.shapes[path]
    number, inputs = network.form.distinct.index(shape), shape[0]
    alike = [name for name in names if network.form.shapes[name] == shape]
    mean, deviation = (
        getattr(network, f"{part}_{number}").double().numpy() for part in ("mean", "deviation")
    )
    shifts = []
    for row in rows.double().numpy():
        state = (row - mean) / deviation
        for block in network.blocks.stacks[number]:
            weights = {n: p.detach().double().numpy() for n, p in block.named_parameters()}
            mixed = state @ weights["down"] @ weights["up"] + weights["bias"]
            place = alike.index(path)
            gated = weights["scale"][place] * np.maximum(mixed, 0)
            state = state + gated + weights["offset"][place]
        rate = np.exp(float(network.log_rates[names.index(path)].detach()))
        shifts.append(-rate * (row[:inputs] @ state[:inputs]) * state[inputs:])
    return np.stack(shifts)


@pytest.fixture
def lessons(knowing: Session) -> Any:
    return maker(knowing, MalmenNetwork, whole=False)


def test_an_update_is_that_of_the_equations(knowing: Session, lessons: Any) -> None:
    edits = [edit.rows for edit in taught(knowing, lessons, 20, 21, 22)]
    network = network_of(knowing, MalmenNetwork, lessons.matrices)
    network.prepare(edits)
    for path, side_path in network.side_paths(edits).items():
        rows = torch.cat([edit.rows[path] for edit in edits])
        inputs = network.form.shapes[path][0]
        keys = rows[:, :inputs].double().numpy()
        shifts = slow_shifts(network, path, rows)
        ridge = float(network.ridge(path).detach())
        expected = np.linalg.solve(keys.T @ keys + ridge * np.eye(inputs), keys.T @ shifts)
        found = (side_path.left @ side_path.right).detach().numpy()
        scale = float(np.abs(expected).max())
        assert scale > 0
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * scale)


def test_gradients_are_those_of_the_paper(knowing: Session, lessons: Any) -> None:
    """∂L/∂D = K·M and ∂L/∂log λ = −λ·⟨M, ΔW⟩, with M = (KᵀK + λI)⁻¹Γ, for L = ⟨Γ, ΔW⟩."""
    edits = [edit.rows for edit in taught(knowing, lessons, 20, 21, 22)]
    network = network_of(knowing, MalmenNetwork, lessons.matrices)
    network.prepare(edits)
    path, (inputs, outputs) = next(iter(network.form.shapes.items()))
    gamma = torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(3))
    with torch.enable_grad():
        side_path = network.side_paths(edits)[path]
        side_path.right.retain_grad()
        (gamma * (side_path.left @ side_path.right)).sum().backward()
    keys = torch.cat([edit.rows[path] for edit in edits])[:, :inputs].double()
    ridge = float(network.ridge(path).detach())
    system = keys.T @ keys + ridge * torch.eye(inputs, dtype=torch.float64)
    back = torch.linalg.solve(system, gamma.double())
    update = torch.linalg.solve(system, keys.T @ side_path.right.detach().double())
    assert side_path.right.grad is not None
    torch.testing.assert_close(side_path.right.grad.double(), keys @ back, rtol=1e-3, atol=1e-5)
    found = network.get_parameter("log_ridges").grad
    assert found is not None
    expected = -ridge * float((back * update).sum())
    assert float(found[0]) == pytest.approx(expected, rel=1e-3)


def untrained(session: Session, rate: float) -> MalmenNetwork:
    matrices = chosen_matrices(session.edited, LAST)
    network = MalmenNetwork(NetworkForm({m.path: m.shape for m in matrices}, 4))
    with torch.no_grad():
        network.log_rates.fill_(float(np.log(rate)))
    return network


def test_a_batch_is_edited_by_the_networks_own_update(knowing: Session, tmp_path: Path) -> None:
    """As published; in the file the network has the very rows that it is trained on."""
    lessons = maker(knowing, MalmenNetwork, BOTH, whole=False)
    inputs = [edit.rows for edit in taught(knowing, lessons, 20, 21)]
    network = network_of(knowing, MalmenNetwork, lessons.matrices)
    network.prepare(inputs)
    table = file_of(knowing, network, tmp_path / "malmen.safetensors")
    encode = knowing.site.task.encode
    edits = [Edit(r, (encode(r.prompt, r.target_new),), ()) for c in (20, 21) for r in [request(c)]]
    context = EditContext(
        knowing.site,
        knowing.run_state.memory,
        torch.Generator(),
        known_answers=knowing.run_state.known_answers,
    )
    patch = Malmen(MalmenConfig(**table, **PUBLISHED)).edit(edits, context).patch
    assert isinstance(patch, GradientPatch)
    for path, side_path in network.side_paths(inputs).items():
        expected = (side_path.left @ side_path.right).detach()
        found = patch.factors[path].left @ patch.factors[path].right
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale)


def apply(session: Session, table: dict[str, Any], size: int, *countries: int) -> list[str]:
    run = session.settings(chain=("malmen",), editors={"malmen": table}, batch_size=size)
    steps = session.apply_requests([request(country) for country in countries], run)
    return [outcome.outcome for step in steps for outcome in step.outcomes]


def test_batches_are_rebuilt_and_made_again_to_the_same_bits(
    made: Make, knowing_model: Path, probe_files: dict[str, Path], tmp_path: Path
) -> None:
    session = made(knowing_model, watch=UNWATCHED, **probe_files)
    table = file_of(session, untrained(session, 1e-2), tmp_path / "malmen.safetensors")
    assert apply(session, table, 3, *range(20, 26)).count("applied") > 3
    lineage = session.store.lineage("head")
    assert all(state.is_same for state in rebuild(session, lineage))
    assert all(step.is_same for step in recompute(session, lineage))


def test_the_ridge_is_the_trained_one_unless_it_is_set(knowing: Session, tmp_path: Path) -> None:
    network = untrained(knowing, 1e-2)
    with torch.no_grad():
        network.log_ridges.fill_(1.5)
    table = file_of(knowing, network, tmp_path / "malmen.safetensors")
    context = EditContext(knowing.site, knowing.run_state.memory, torch.Generator())
    path = next(iter(network.form.shapes))
    trained = Malmen(MalmenConfig(**table)).ridge(path, context)
    assert trained == pytest.approx(float(np.exp(1.5)))
    assert Malmen(MalmenConfig(**table, trained_ridge=False, ridge=2.0)).ridge(path, context) == 2.0
