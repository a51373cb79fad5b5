"""Groups, side paths and training of editor networks, against copies of the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual.editors.mend import MendNetwork
from continual.errors import CeditError
from continual.gradients.config import GradientConfig
from continual.gradients.lessons import LessonGroup
from continual.gradients.matrices import EditableMatrix, chosen_matrices
from continual.gradients.side_paths import SidePath, beside
from continual.gradients.teaching import NetworkJob
from continual.gradients.trained import NetworkFile
from continual.gradients.training import NetworkRecipe
from continual.passes.partial import logits_of
from continual.session import Session
from tests.continual.gradients.networks import (
    BOTH,
    file_of,
    group_of,
    maker,
    network_of,
    requests,
)

RECIPE = NetworkRecipe(rank=4, epochs=3, edits=3, rephrases=1, texts_beside=2, held_out_share=0.3)


def with_weights(
    model: nn.Module, matrices: tuple[EditableMatrix, ...], updates: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The model's parameters with ΔW [inputs, outputs] added; Conv1D stores W so."""
    parameters = dict(model.named_parameters())
    for matrix in matrices:
        assert parameters[matrix.path].shape == matrix.shape
        parameters[matrix.path] = parameters[matrix.path] + updates[matrix.path]
    return parameters


def naive_losses(
    session: Session,
    group: LessonGroup,
    matrices: tuple[EditableMatrix, ...],
    updates: list[dict[str, Tensor]],
) -> tuple[Tensor, Tensor]:
    """-log p and KL over the texts of a group, one whole pass a text, with W + ΔW of its edit."""
    model = copy.deepcopy(session.edited.model)
    costs: list[Tensor] = []
    divergences: list[Tensor] = []
    for number, (text, owner) in enumerate(
        zip(group.encodings, group.owners.tolist(), strict=True)
    ):
        inputs = {"input_ids": torch.tensor([list(text.ids)])}
        edited = torch.func.functional_call(
            model, with_weights(model, matrices, updates[owner]), kwargs=inputs
        )
        log_probs = edited.logits[0, list(text.positions)].log_softmax(-1)
        if number < group.inside_count:
            costs += [-log_probs[i, token] for i, token in enumerate(text.targets)]
        else:
            base = model(**inputs).logits[0, list(text.positions)].log_softmax(-1)
            divergences += list((base.exp() * (base - log_probs)).sum(1))
    return torch.stack(costs).mean(), torch.stack(divergences).mean()


def test_losses_and_their_gradients_are_those_of_whole_passes(knowing: Session) -> None:
    """For blocks 1 alone, so that the states in front of it are recorded ones."""
    choice = GradientConfig(blocks=(1,), sides="both")
    lessons = maker(knowing, MendNetwork, choice)
    group = group_of(knowing, lessons, 20, 21, 22)
    assert group.first_block == 1 and len(group.encodings) == 3 * (2 + 2)
    network = network_of(knowing, MendNetwork, lessons.matrices)
    network.prepare(group.edits)
    with torch.no_grad():
        network.get_parameter("log_rates").fill_(-4.0)
    with torch.enable_grad():
        outcome = group.under(knowing.site, lessons.matrices, network.side_paths(group.edits))
        network.loss(outcome.loss_inside, outcome.divergence).backward()
    found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    with torch.enable_grad():
        paths = [network.side_paths([edit]) for edit in group.edits]
        updates = [{p: s.left[0] @ s.right[0] for p, s in of_edit.items()} for of_edit in paths]
        cost, divergence = naive_losses(knowing, group, lessons.matrices, updates)
        network.loss(cost, divergence).backward()
    torch.testing.assert_close(outcome.loss_inside, cost, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outcome.divergence, divergence, rtol=1e-3, atol=1e-5)
    assert float(divergence.detach()) > 1e-4
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-2, atol=1e-3 * scale)


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_side_path_is_an_added_product(knowing: Session, is_shared: bool) -> None:
    matrices = chosen_matrices(knowing.edited, BOTH)
    draw = torch.Generator().manual_seed(1)
    paths = {
        m.path: SidePath(
            *(
                0.2 * torch.randn(shape if is_shared else (2, *shape), generator=draw)
                for shape in ((m.shape[0], 3), (3, m.shape[1]))
            )
        )
        for m in matrices
    }
    ids = torch.tensor([[4, 5, 6, 7], [8, 9, 10, 4]])
    model = knowing.edited.model
    with torch.no_grad(), beside({m.path: m.module for m in matrices}, paths):
        found = logits_of(model, {"input_ids": ids})
    for row in range(2):
        clone = copy.deepcopy(model)
        for matrix in matrices:
            path = paths[matrix.path]
            left, right = (t if is_shared else t[row] for t in (path.left, path.right))
            clone.get_parameter(matrix.path).data += left @ right
        expected = logits_of(clone, {"input_ids": ids[row : row + 1]})
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found, logits_of(model, {"input_ids": ids}))


def run(session: Session, out: Path, epochs: int = 3, **recipe: Any) -> list[Any]:
    settings = {**RECIPE.__dict__, "epochs": epochs, **recipe}
    job = NetworkJob(MendNetwork, True, BOTH, NetworkRecipe(**settings))
    known = session.run_state.known_answers().training
    return list(job.run(session.site, requests(*range(20, 30)), known, out))


def test_training_lowers_the_loss_and_leaves_the_model_alone(
    knowing: Session, tmp_path: Path
) -> None:
    before = {n: t.clone() for n, t in knowing.edited.model.state_dict().items()}
    epochs = run(knowing, tmp_path / "mend.safetensors", 8, rate_learning_rate=0.3, patience=8)
    assert [epoch.number for epoch in epochs] == list(range(1, 9))
    assert min(epoch.loss for epoch in epochs) < epochs[0].loss
    assert all(torch.equal(t, before[n]) for n, t in knowing.edited.model.state_dict().items())
    assert not any(p.grad is not None for p in knowing.edited.model.parameters())
    assert not (tmp_path / "mend.safetensors.partial").exists()


def test_a_run_that_is_resumed_comes_to_the_same_bits(knowing: Session, tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    whole = run(knowing, one)
    job = NetworkJob(MendNetwork, True, BOTH, RECIPE)
    known = knowing.run_state.known_answers().training
    steps = job.run(knowing.site, requests(*range(20, 30)), known, other)
    first = next(steps)
    steps.close()  # as a kill after the first epoch
    assert not other.exists()
    rest = run(knowing, other)
    assert [first, *rest] == whole
    assert NetworkFile.of(one).digest == NetworkFile.of(other).digest
    with pytest.raises(CeditError, match="name a new file"):
        run(knowing, other)


def test_a_run_of_other_settings_or_requests_is_not_resumed(
    knowing: Session, tmp_path: Path
) -> None:
    out = tmp_path / "mend.safetensors"
    job = NetworkJob(MendNetwork, True, BOTH, RECIPE)
    next(job.run(knowing.site, requests(*range(20, 30)), (), out))
    with pytest.raises(CeditError, match="other settings or requests"):
        run(knowing, out, seed=5)
    with pytest.raises(CeditError, match="other settings or requests"):
        list(job.run(knowing.site, requests(*range(20, 28)), (), out))


def test_training_ends_when_held_out_edits_gain_no_more(knowing: Session, tmp_path: Path) -> None:
    """With steps so large that it only gets worse; the best epoch is the one that is left."""
    out = tmp_path / "mend.safetensors"
    epochs = run(knowing, out, 50, rate_learning_rate=3.0, learning_rate=0.3, patience=2)
    assert len(epochs) < 50 and not any(epoch.is_best for epoch in epochs[-2:])
    best = min(epochs, key=lambda epoch: epoch.loss)
    early = tmp_path / "early.safetensors"
    run(knowing, early, best.number, rate_learning_rate=3.0, learning_rate=0.3, patience=2)
    networks = [
        NetworkFile.of(path).read(MendNetwork, knowing.edited.base.fingerprint).state_dict()
        for path in (out, early)
    ]
    assert all(torch.equal(tensor, networks[1][name]) for name, tensor in networks[0].items())


def test_requests_that_are_known_already_teach_nothing(knowing: Session, tmp_path: Path) -> None:
    job = NetworkJob(MendNetwork, True, BOTH, RECIPE)
    with pytest.raises(CeditError, match="at least two"):
        list(job.run(knowing.site, requests(20), (), tmp_path / "mend.safetensors"))


# --- the file -------------------------------------------------------------------------------------


def test_a_network_comes_back_from_its_file(knowing: Session, tmp_path: Path) -> None:
    matrices = chosen_matrices(knowing.edited, BOTH)
    network = network_of(knowing, MendNetwork, matrices)
    table = file_of(knowing, network, tmp_path / "mend.safetensors")
    file = NetworkFile(Path(table["network"]), table["network_digest"])
    found = file.read(MendNetwork, knowing.edited.base.fingerprint)
    assert found.form == network.form
    assert all(torch.equal(t, network.state_dict()[n]) for n, t in found.state_dict().items())
    assert not any(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize("damage", ["missing", "other", "garbage", "base"])
def test_a_file_that_is_not_the_one_is_refused(
    knowing: Session, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "mend.safetensors"
    network = network_of(knowing, MendNetwork, chosen_matrices(knowing.edited, BOTH))
    file_of(knowing, network, path)
    file, base = NetworkFile.of(path), knowing.edited.base.fingerprint
    reasons = {
        "missing": "can't be read",
        "other": "another file than the settings name",
        "garbage": "can't be read as a network",
        "base": "was trained on the base",
    }
    if damage == "missing":
        path.unlink()
    elif damage == "other":
        path.write_bytes(path.read_bytes() + b" ")
    elif damage == "garbage":
        path.write_bytes(b"no tensors")
        file = NetworkFile.of(path)
    else:
        base = "0" * 64
    with pytest.raises(CeditError, match=reasons[damage]) as found:
        file.read(MendNetwork, base)
    assert "cedit train mend" in str(found.value)
