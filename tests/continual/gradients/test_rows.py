"""Rows of inputs and gradients, against a copy of the model and autograd."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from continual.editors.ultraedit import UltraEditConfig
from continual.errors import CeditError, ModelError
from continual.gradients.config import GradientConfig
from continual.gradients.matrices import EditableMatrix, chosen_matrices
from continual.gradients.moments import PROBES_MAX, base_texts, input_moments
from continual.gradients.rows import read_rows
from continual.gradients.warmup import misanswered
from continual.proposals import KnownAnswers
from continual.session import Session
from continual.tasks import Encoding, Question
from tests import tiny_language as language
from tests.continual.conftest import TASKS, Make


def encoded(session: Session, *countries: int) -> list[Encoding]:
    """Facts with answers that the model does not give; prompts of two lengths."""
    return [
        session.site.task.encode(language.ask(c, c % 2), answer_of(session, c + 1))
        for c in countries
    ]


def answer_of(session: Session, country: int) -> str:
    is_label = session.site.task.name == "classification"
    return language.part(country) if is_label else language.capital(country)


def opened(made: Make, models: dict[str, Path], task: str) -> Session:
    return made(models[task], task={"name": task})


def naive_rows(
    session: Session, matrices: tuple[EditableMatrix, ...], encoding: Encoding
) -> dict[str, Tensor]:
    """One text through a copy of the model, with the outputs of all layers retained."""
    clone = copy.deepcopy(session.edited.model)
    states: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(path: str) -> object:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            states[path] = args[0], output

        return hook

    for parameter in clone.parameters():
        parameter.requires_grad_(True)
    for matrix in matrices:
        module = clone.get_submodule(matrix.path.removesuffix(".weight"))
        module.register_forward_hook(keep(matrix.path))
    with torch.enable_grad():
        logits = clone(**session.site.inputs([encoding])).logits[0]
        picked = logits[None] if logits.ndim == 1 else logits[list(encoding.positions)]
        losses = -picked.log_softmax(-1)[range(len(encoding.targets)), list(encoding.targets)]
        (losses.sum() / len(encoding.targets)).backward()
    places = list(encoding.positions)
    rows: dict[str, Tensor] = {}
    for path, (inputs, output) in states.items():
        assert output.grad is not None
        rows[path] = torch.cat([inputs[0][places], output.grad[0][places]], 1).detach()
    return rows


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_those_of_a_copied_model(made: Make, models: dict[str, Path], task: str) -> None:
    session = opened(made, models, task)
    matrices = chosen_matrices(session.edited, GradientConfig(blocks=(0, 1), sides="both"))
    assert len(matrices) == 4
    texts = encoded(session, 3, 4, 5)
    found = read_rows(session.site, {m.path: m.module for m in matrices}, texts)
    naive = [naive_rows(session, matrices, text) for text in texts]
    for matrix in matrices:
        expected = torch.cat([rows[matrix.path] for rows in naive])
        assert found[matrix.path].shape == (len(expected), sum(matrix.shape))
        scale = expected.abs().amax()
        torch.testing.assert_close(found[matrix.path], expected, rtol=1e-4, atol=1e-6 * scale)
        assert bool(found[matrix.path][:, matrix.shape[0] :].any())


def test_rows_of_the_last_matrix_make_the_gradient_of_its_weight(knowing: Session) -> None:
    """Behind the last FFN only the positions of the answer have a gradient."""
    (matrix,) = chosen_matrices(knowing.edited, GradientConfig(blocks=(1,), sides="down"))
    (text,) = encoded(knowing, 3)
    rows = read_rows(knowing.site, {matrix.path: matrix.module}, [text])[matrix.path]
    clone = copy.deepcopy(knowing.edited.model)
    weight = clone.get_parameter(matrix.path).requires_grad_(True)
    with torch.enable_grad():
        logits = clone(**knowing.site.inputs([text])).logits[0, list(text.positions)]
        nn.functional.cross_entropy(logits, torch.tensor(text.targets)).backward()
    inputs = matrix.shape[0]
    assert weight.grad is not None
    torch.testing.assert_close(rows[:, :inputs].T @ rows[:, inputs:], weight.grad)


def test_reading_leaves_no_hook_and_no_gradient_behind(knowing: Session) -> None:
    (matrix,) = chosen_matrices(knowing.edited, GradientConfig(blocks=(0,), sides="up"))
    before = dict(matrix.module._forward_hooks)
    texts = encoded(knowing, 3, 4)
    once = read_rows(knowing.site, {"up": matrix.module}, texts)
    with pytest.raises(ModelError, match="ran 0 times"):
        read_rows(knowing.site, {"up": matrix.module, "stray": nn.Linear(2, 2)}, texts)
    assert dict(matrix.module._forward_hooks) == before
    assert not any(p.requires_grad or p.grad is not None for p in knowing.model.parameters())
    assert torch.equal(read_rows(knowing.site, {"up": matrix.module}, texts)["up"], once["up"])


@pytest.mark.parametrize(("sides", "count"), [("both", 2), ("up", 1), ("down", 1)])
def test_the_matrices_are_those_of_the_blocks_and_sides(
    knowing: Session, sides: str, count: int
) -> None:
    config = GradientConfig.of({"blocks": [1], "sides": sides})
    matrices = chosen_matrices(knowing.edited, config)
    assert len(matrices) == count and {matrix.block for matrix in matrices} == {1}


def test_a_block_that_the_model_does_not_have_is_refused(knowing: Session) -> None:
    with pytest.raises(CeditError, match="blocks 0 to 1"):
        chosen_matrices(knowing.edited, UltraEditConfig(blocks=(1, 2)))


def test_the_last_block_is_edited_by_default(knowing: Session) -> None:
    (matrix,) = chosen_matrices(knowing.edited, GradientConfig())
    assert matrix.block == 1 and matrix.path == knowing.edited.anatomy.down_path(1)


@pytest.mark.parametrize("task", TASKS)
def test_moments_are_those_of_every_token_text_by_text(
    made: Make, models: dict[str, Path], task: str
) -> None:
    session = opened(made, models, task)
    matrices = chosen_matrices(session.edited, GradientConfig(blocks=(0, 1), sides="both"))
    modules = {matrix.path: matrix.module for matrix in matrices}
    texts = encoded(session, *range(8))
    assert len({len(text.ids) for text in texts}) > 1 or task != "causal"
    found = input_moments(session.site, modules, texts)
    rows: dict[str, list[Tensor]] = {path: [] for path in modules}
    handles = [
        module.register_forward_hook(lambda _, args, __, path=path: rows[path].append(args[0][0]))
        for path, module in modules.items()
    ]
    with torch.no_grad():
        for text in texts:
            session.edited.model(**session.site.inputs([text]))
    for handle in handles:
        handle.remove()
    for path, parts in rows.items():
        tokens = torch.cat(parts).double()
        expected = sum(torch.outer(token, token) for token in tokens) / len(tokens)
        scale = float(expected.abs().amax())
        torch.testing.assert_close(found[path], expected, rtol=1e-4, atol=1e-6 * scale)


def test_moments_are_of_the_bare_base(knowing: Session) -> None:
    (matrix,) = chosen_matrices(knowing.edited, GradientConfig(sides="down"))
    modules, texts = {"down": matrix.module}, encoded(knowing, 3, 4)
    before = input_moments(knowing.site, modules, texts)["down"]
    assert knowing.apply([language.correction(25)])[0].outcomes[0].outcome == "applied"
    assert torch.equal(input_moments(knowing.site, modules, texts)["down"], before)


def test_the_texts_of_moments_are_general_text_and_some_probes() -> None:
    probes = tuple(probe(i, 7) for i in range(PROBES_MAX + 50))
    texts = base_texts(KnownAnswers(probes, general=((1, 2, 3), (4, 5))), seed=1)
    assert [text.ids for text in texts[:2]] == [(1, 2, 3), (4, 5)]
    assert len(set(texts[2:])) == PROBES_MAX and set(texts[2:]) < set(probes)
    assert base_texts(KnownAnswers(probes), seed=2) != texts[2:]
    assert base_texts(KnownAnswers(), seed=0) == []


def probe(question: int, *answer: int) -> Encoding:
    return Encoding(Question((question,)), tuple(range(len(answer))), answer)


def test_warm_up_probes_have_each_others_answers() -> None:
    probes = [*(probe(i, i % 3) for i in range(20)), *(probe(i, i, 7) for i in range(20, 26))]
    swapped = misanswered(probes, 100, seed=1)
    answers = {p.question: p.targets for p in probes}
    assert len(swapped) > 12
    for text in swapped:
        assert text.targets != answers[text.question]
        assert len(text.targets) == len(answers[text.question])
    assert misanswered(probes, 5, seed=1) == swapped[:5]
    assert misanswered(probes, 100, seed=2) != swapped


def test_probes_that_all_have_one_answer_warm_nothing_up() -> None:
    assert misanswered([probe(i, 7) for i in range(5)], 10, seed=0) == []
    assert misanswered([probe(0, 7)], 10, seed=0) == []
    assert misanswered([], 10, seed=0) == []
