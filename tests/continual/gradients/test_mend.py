"""MEND: its network and its step against slow ones, and its edits in a history."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continual.editors.mend import Mend, MendConfig, MendNetwork
from continual.errors import CeditError
from continual.gradients.config import GradientConfig
from continual.gradients.matrices import chosen_matrices
from continual.gradients.networks import NetworkForm, NetworkInput
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
PLAIN = {"solved": False, "scale_max": 1}


def request(country: int) -> Request:
    return Request.from_json(language.correction(country))


def edits_of(session: Session, *countries: int) -> list[Edit]:
    encode = session.site.task.encode
    return [Edit(r, (encode(r.prompt, r.target_new),), ()) for c in countries for r in [request(c)]]


def context(session: Session) -> EditContext:
    draw, known = torch.Generator().manual_seed(0), session.run_state.known_answers
    return EditContext(session.site, session.run_state.memory, draw, known_answers=known)


def untrained(session: Session, rate: float, choice: GradientConfig = BOTH) -> MendNetwork:
    """The identity, without any normalising."""
    matrices = chosen_matrices(session.edited, choice)
    network = MendNetwork(NetworkForm({m.path: m.shape for m in matrices}, 4))
    with torch.no_grad():
        network.log_rates.fill_(float(np.log(rate)))
    return network


def patch_of(session: Session, table: dict[str, Any], *countries: int) -> GradientPatch:
    patch = Mend(MendConfig(**table)).edit(edits_of(session, *countries), context(session)).patch
    assert isinstance(patch, GradientPatch)
    return patch


def dense(patch: GradientPatch) -> dict[str, Tensor]:
    return {p: f.left.double() @ f.right.double() for p, f in patch.factors.items()}


def weight_gradients(session: Session, *countries: int) -> dict[str, Tensor]:
    """The gradient of each parameter for the summed losses of some edits, on a copied model."""
    clone = copy.deepcopy(session.edited.model).requires_grad_(True)
    with torch.enable_grad():
        for edit in edits_of(session, *countries):
            (text,) = edit.encodings
            logits = clone(input_ids=torch.tensor([list(text.ids)])).logits[0]
            picked, targets = logits[list(text.positions)], torch.tensor(text.targets)
            nn.functional.cross_entropy(picked, targets).backward()
    return {n: p.grad.double() for n, p in clone.named_parameters() if p.grad is not None}


def test_the_untrained_network_goes_down_the_gradient_of_the_weights(
    knowing: Session, tmp_path: Path
) -> None:
    """Over all tokens of the texts, for matrices of any block."""
    table = file_of(knowing, untrained(knowing, 0.5), tmp_path / "mend.safetensors")
    found = dense(patch_of(knowing, {**table, **PLAIN}, 20, 21))
    gradients = weight_gradients(knowing, 20, 21)
    assert len(found) == 4
    for path, update in found.items():
        expected = -0.5 * gradients[path]
        scale = float(expected.abs().max())
        torch.testing.assert_close(update, expected, rtol=1e-3, atol=1e-5 * scale)


def test_a_batch_is_the_sum_of_its_edits(knowing: Session, tmp_path: Path) -> None:
    network = network_of(knowing, MendNetwork, chosen_matrices(knowing.edited, BOTH))
    table = {**file_of(knowing, network, tmp_path / "mend.safetensors"), **PLAIN}
    both = dense(patch_of(knowing, table, 20, 21))
    one, other = (dense(patch_of(knowing, table, country)) for country in (20, 21))
    for path, update in both.items():
        torch.testing.assert_close(update, one[path] + other[path], rtol=1e-6, atol=1e-9)
        assert bool(update.any())


def slow_update(network: MendNetwork, path: str, rows: Tensor) -> Any:
    """−α·Σ ũᵀδ̃ by numpy, token by token, coordinate statistics and blocks written out."""
    names = list(network.form.shapes)
    shape = network.form.shapes[path]
    number, inputs = network.form.distinct.index(shape), shape[0]
    alike = [name for name in names if network.form.shapes[name] == shape]
    mean, deviation = (
        getattr(network, f"{part}_{number}").double().numpy() for part in ("mean", "deviation")
    )
    update = np.zeros(shape)
    for row in rows.double().numpy():
        if not row[inputs:].any():
            continue
        state = (row - mean) / deviation
        for block in network.blocks.stacks[number]:
            weights = {n: p.detach().double().numpy() for n, p in block.named_parameters()}
            mixed = state @ weights["down"] @ weights["up"] + weights["bias"]
            place = alike.index(path)
            gated = weights["scale"][place] * mixed + weights["offset"][place]
            state = state + np.maximum(gated, 0)
        rate = np.exp(float(network.log_rates[names.index(path)].detach()))
        update -= rate * np.outer(state[:inputs], state[inputs:])
    return update


def test_an_update_is_that_of_the_equations(knowing: Session) -> None:
    lessons = maker(knowing, MendNetwork)
    edits = [edit.rows for edit in taught(knowing, lessons, 20, 21, 22)]
    network = network_of(knowing, MendNetwork, lessons.matrices)
    network.prepare(edits)
    paths = network.side_paths(edits)
    for path, side_path in paths.items():
        for number, edit in enumerate(edits):
            expected = slow_update(network, path, edit.rows[path])
            found = (side_path.left[number] @ side_path.right[number]).detach().numpy()
            scale = float(np.abs(expected).max())
            assert scale > 0
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * scale)


def test_statistics_are_of_all_rows_and_a_still_coordinate_says_nothing(knowing: Session) -> None:
    network = untrained(knowing, 1.0)
    lessons = maker(knowing, MendNetwork)
    edits = [edit.rows for edit in taught(knowing, lessons, 20, 21, 22)]
    path = next(iter(network.form.shapes))
    still = [
        NetworkInput(
            {p: r.clone().index_fill_(1, torch.tensor([3]), 2.0) for p, r in e.rows.items()}
        )
        for e in edits
    ]
    network.prepare(still)
    normalised = network.normalised(path, still[0].rows[path] + 1.0)
    assert bool(normalised.isfinite().all()) and not bool(normalised[:, 3].any())
    shape = network.form.shapes[path]
    alike = [p for p, s in network.form.shapes.items() if s == shape]
    every = torch.cat([e.rows[p] for e in still for p in alike]).double()
    torch.testing.assert_close(network.mean_0.double(), every.mean(0), rtol=1e-5, atol=1e-7)
    expected = every.std(0)
    found = network.deviation_0.double()
    varies = torch.arange(len(expected)) != 3
    varies &= expected > 0
    torch.testing.assert_close(found[varies], expected[varies], rtol=1e-4, atol=1e-9)


# --- the editor in a history ----------------------------------------------------------------------


@pytest.fixture
def unwatched(made: Make, knowing_model: Path, probe_files: dict[str, Path]) -> Session:
    return made(knowing_model, watch=UNWATCHED, **probe_files)


def apply(session: Session, table: dict[str, Any], *countries: int) -> list[str]:
    run = session.settings(chain=("mend",), editors={"mend": table})
    steps = session.apply_requests([request(country) for country in countries], run)
    return [outcome.outcome for step in steps for outcome in step.outcomes]


def test_the_digest_stands_in_every_revision(unwatched: Session, tmp_path: Path) -> None:
    network = untrained(unwatched, 0.1, LAST)
    table = file_of(unwatched, network, tmp_path / "mend.safetensors")
    assert apply(unwatched, table, 20, 21) == ["applied", "applied"]
    for revision in list(unwatched.store.lineage("head"))[-2:]:
        settings = revision.body["settings"]["editors"]["mend"]
        assert settings["network_digest"] == table["network_digest"]


def test_a_history_is_rebuilt_and_made_again_to_the_same_bits(
    unwatched: Session, tmp_path: Path
) -> None:
    network = untrained(unwatched, 0.1, LAST)
    table = file_of(unwatched, network, tmp_path / "mend.safetensors")
    before = {n: t.clone() for n, t in unwatched.model.state_dict().items()}
    assert "applied" in apply(unwatched, table, 20, 21, 22)
    unwatched.revert(request(20).id)
    lineage = unwatched.store.lineage("head")
    assert all(state.is_same for state in rebuild(unwatched, lineage))
    assert all(made.is_same for made in recompute(unwatched, lineage))
    unwatched.rollback("base")
    assert all(torch.equal(t, before[n]) for n, t in unwatched.model.state_dict().items())


def test_solved_updates_keep_earlier_edits_that_plain_ones_lose(
    made: Make, knowing_model: Path, probe_files: dict[str, Path], tmp_path: Path
) -> None:
    kept: dict[bool, float] = {}
    for solved in (True, False):
        session = made(knowing_model, f"{solved}", watch=UNWATCHED, **probe_files)
        network = untrained(session, 0.1, LAST)
        table = file_of(session, network, tmp_path / "mend.safetensors")
        outcomes = apply(session, {**table, "solved": solved}, *range(20, 30))
        assert outcomes.count("applied") > 5
        record = session.store.ledger(session.store.head.seq)
        assert record is not None
        kept[solved] = record["rates"]["ER"]
    assert kept[True] > kept[False]


def test_without_a_network_the_command_that_makes_one_is_named(knowing: Session) -> None:
    with pytest.raises(CeditError, match="cedit train mend REQUESTS"):
        patch_of(knowing, {}, 20)


def test_a_network_of_another_model_is_refused(
    knowing: Session, made: Make, random_model: Path, tmp_path: Path
) -> None:
    table = file_of(knowing, untrained(knowing, 0.1), tmp_path / "mend.safetensors")
    bare = made(random_model, "another")
    with pytest.raises(CeditError, match="was trained on the base"):
        patch_of(bare, table, 20)
