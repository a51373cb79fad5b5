"""UltraEdit: a whole step against a naive one, and its place in the history."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continual.editors.ultraedit import UltraEdit, UltraEditConfig
from continual.editors.ultraedit.config import RATE_BY_WIDTH
from continual.errors import CeditError, EditError
from continual.gradients.matrices import chosen_matrices
from continual.gradients.moments import base_texts
from continual.gradients.warmup import misanswered
from continual.history.replaying import rebuild
from continual.patches import Patch, pack, unpack
from continual.patches.gradient import GradientPatch
from continual.patches.low_rank import Factors, LowRankPatch
from continual.patches.weight_sums import GradientSums, MatrixSums
from continual.proposals import Edit, EditContext, Proposal
from continual.requests import Request
from continual.session import Session
from continual.snapshots import Gathered, Snapshot
from continual.tasks import Encoding
from continual.watch.config import UNWATCHED
from tests import tiny_language as language
from tests.continual.conftest import Make, reopened

PUBLISHED = {"blocks": (0,), "sides": "both", "moment_weight": 0.0, "memory": False}
"""The system as published, here of all matrices of the block before the last."""
STRONG = {**PUBLISHED, "rate": 0.05, "warmup": 16, "scale_max": 1}
"""Shifts that a tiny model's answers follow at once."""
SEARCHED = {"rate": 1e-3, "warmup": 64, "scale_max": 256, "margin": 0.5}
"""Weak shifts, doubled for each request until it is answered."""


def request(country: int, **more: Any) -> Request:
    return Request.from_json(language.correction(country, **more))


def apply(session: Session, *countries: int, **settings: Any) -> list[str]:
    """Apply corrections as one batch by ultraedit alone; return the outcome of each."""
    tables = {"ultraedit": {**STRONG, **settings}}
    run = session.settings(chain=("ultraedit",), editors=tables, batch_size=len(countries))
    (step,) = session.apply_requests([request(country) for country in countries], run)
    return [outcome.outcome for outcome in step.outcomes]


def weights(session: Session) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in session.model.state_dict().items()}


def is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def patch_of(session: Session) -> GradientPatch:
    parts: tuple[Patch, ...] = session.patches(session.head.patch)
    (part,) = parts
    assert isinstance(part, GradientPatch)
    return part


@pytest.fixture
def unwatched(made: Make, knowing_model: Path, probe_files: dict[str, Path]) -> Session:
    """A store on the decoder that knows, where an edit fails by its own answer alone."""
    return made(knowing_model, watch=UNWATCHED, **probe_files)


def edit_of(session: Session, country: int) -> Edit:
    asked = request(country)
    encoding = session.site.task.encode(asked.prompt, asked.target_new)
    return Edit(asked, (encoding,), ())


def context(session: Session, **more: Any) -> EditContext:
    draw = torch.Generator().manual_seed(0)
    known = session.run_state.known_answers
    return EditContext(session.site, session.run_state.memory, draw, known_answers=known, **more)


def proposed(session: Session, *countries: int, **settings: Any) -> Proposal:
    """The proposal of a plain editor, whether it is right or not."""
    editor = UltraEdit(UltraEditConfig(**{**STRONG, **settings}))
    return editor.edit([edit_of(session, c) for c in countries], context(session))


# --- the step -------------------------------------------------------------------------------------


def naive_rows(model: nn.Module, path: str, ids: list[int], target: int) -> Any:
    """h and g at the last token of one text, by autograd, as numpy [inputs + outputs]."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        seen.extend((args[0], output))

    handle = model.get_submodule(path.removesuffix(".weight")).register_forward_hook(hook)
    with torch.enable_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        nn.functional.cross_entropy(logits[None], torch.tensor([target])).backward()
    handle.remove()
    grad = seen[1].grad
    assert grad is not None
    return np.concatenate([seen[0][0, -1].detach().numpy(), grad[0, -1].numpy()]).astype(float)


def naive_step(
    model: nn.Module,
    texts: list[Encoding],
    before: list[list[Any]],
    path: str,
    rate: float,
    past: Any,
    moment: Any,
) -> Any:
    """One turn as the paper has it, on a copy of the model, by loops: returns ΔW [in, out]. Past
    keys and μC₀ are in the system."""
    rows = [naive_rows(model, path, list(t.ids), t.targets[0]) for t in texts]
    seen = np.stack([row for group in before for row in group] + rows)
    count, total, squares = 0, np.zeros(seen.shape[1]), np.zeros(seen.shape[1])
    for row in seen:  # Welford
        count += 1
        delta = row - total
        total = total + delta / count
        squares = squares + delta * (row - total)
    deviation = np.sqrt(squares / (count - 1 + 1e-7))
    inputs = nn.Module.get_parameter(model, path).shape[0]  # Conv1D: [inputs, outputs]
    shifts, keys = [], []
    for row in rows:
        scaled = (row - total) / (deviation + 1e-7)
        length = sum(float(x) ** 2 for x in scaled[:inputs])
        shifts.append(-rate * length * scaled[inputs:])
        keys.append(row[:inputs])
    stacked = np.stack(keys)
    system = stacked.T @ stacked + np.eye(inputs) + moment
    for key in past:
        system = system + np.outer(key, key)
    return np.linalg.solve(system, stacked.T @ np.stack(shifts))


def naive_moment(model: nn.Module, path: str, texts: list[Encoding]) -> Any:
    """The mean of hᵀh over every token of some texts, one text after another."""
    seen: list[Any] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
        seen.extend(args[0][0].detach().double().numpy())

    handle = model.get_submodule(path.removesuffix(".weight")).register_forward_hook(hook)
    for text in texts:
        model(input_ids=torch.tensor([list(text.ids)]))
    handle.remove()
    return sum(np.outer(token, token) for token in seen) / len(seen)


@pytest.mark.parametrize(("memory", "weight"), [(False, 0.0), (True, 0.0), (True, 20.0)])
def test_a_step_is_that_of_a_naive_copy_of_the_model(
    knowing: Session, memory: bool, weight: float
) -> None:
    settings = {"blocks": (1,), "sides": "up", "memory": memory, "warmup": 8}
    config = UltraEditConfig(**{**STRONG, **settings, "moment_weight": weight})
    (matrix,) = chosen_matrices(knowing.edited, config)
    clone = copy.deepcopy(knowing.edited.model).requires_grad_(True)
    warm = misanswered(knowing.run_state.known_answers().training, 8, seed=0)
    moment = weight * naive_moment(
        clone, matrix.path, base_texts(knowing.run_state.known_answers(), 0)
    )
    before = [[naive_rows(clone, matrix.path, list(t.ids), t.targets[0]) for t in warm]]
    for turn in ((3, 5), (7, 2, 11)):
        first = turn == (3, 5)
        edits = [edit_of(knowing, country) for country in turn]
        past = [row[: matrix.shape[0]] for row in (() if first or not memory else before[1])]
        texts = [edit.encodings[0] for edit in edits]
        expected = naive_step(clone, texts, before, matrix.path, 0.05, past, moment)
        patch = UltraEdit(config).edit(edits, context(knowing)).patch
        assert isinstance(patch, GradientPatch)
        factors = patch.factors[matrix.path]
        found = factors.left.double() @ factors.right.double()
        largest = float(np.abs(expected).max())
        np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3, atol=2e-4 * largest)
        before.append([naive_rows(clone, matrix.path, list(t.ids), t.targets[0]) for t in texts])
        with torch.no_grad():
            clone.get_parameter(matrix.path).add_(torch.from_numpy(expected).float())
        knowing.edited.put([patch])


def test_without_a_rate_it_is_set_by_the_width(knowing: Session) -> None:
    by_width = proposed(knowing, 3, 4, rate=None).patch
    assert isinstance(by_width, GradientPatch)
    for path, factors in by_width.factors.items():
        outright = proposed(knowing, 3, 4, rate=RATE_BY_WIDTH / len(factors.left)).patch
        assert isinstance(outright, GradientPatch)
        assert torch.equal(outright.factors[path].right, factors.right)


def test_a_rate_of_zero_leaves_the_model_bit_for_bit(knowing: Session) -> None:
    before = weights(knowing)
    patch = proposed(knowing, 3, 4, rate=0.0).patch
    assert patch is not None
    knowing.edited.put([patch])
    assert is_same(before, weights(knowing))


def test_an_edits_rows_do_not_depend_on_its_batch(knowing: Session) -> None:
    one, two = proposed(knowing, 3).patch, proposed(knowing, 9, 3).patch
    assert isinstance(one, GradientPatch) and isinstance(two, GradientPatch)
    for path, rows in one.gradient_rows.items():
        assert torch.equal(rows, two.gradient_rows[path][1:])


def test_a_proposal_leaves_the_model_as_it_was(knowing: Session) -> None:
    before, state = weights(knowing), knowing.edited.fingerprint
    proposed(knowing, 3, 4, scale_max=64, margin=50.0)
    assert is_same(before, weights(knowing)) and knowing.edited.fingerprint == state


def test_the_search_doubles_an_update_until_its_answer_leads(knowing: Session) -> None:
    weak = {"rate": 1e-5, "margin": 0.5}
    plain = proposed(knowing, 3, **weak)
    assert plain.notes[request(3).id]["scale"] == 1.0
    grown = proposed(knowing, 3, **weak, scale_max=2**20)
    scale = grown.notes[request(3).id]["scale"]
    assert scale > 1.0 and grown.patch is not None
    assert lead(knowing, grown.patch) >= 0.5
    assert isinstance(plain.patch, GradientPatch) and isinstance(grown.patch, GradientPatch)
    for path, factors in plain.patch.factors.items():
        torch.testing.assert_close(grown.patch.factors[path].right, scale * factors.right)
    assert lead(knowing, multiple(plain.patch, scale / 2)) < 0.5


def multiple(patch: GradientPatch, scale: float) -> GradientPatch:
    factors = {path: Factors(f.left, scale * f.right) for path, f in patch.factors.items()}
    return GradientPatch(factors, patch.blocks, gradient_rows=patch.gradient_rows)


def test_every_edit_of_a_batch_leads_by_the_margin(knowing: Session) -> None:
    patch = proposed(knowing, 3, 5, 22, **SEARCHED).patch
    assert patch is not None
    for country in (3, 5, 22):
        assert lead(knowing, patch, country) >= SEARCHED["margin"]


def lead(session: Session, patch: Patch, country: int = 3) -> float:
    """The lead of a country's answer over all others with a patch on."""
    encoding = edit_of(session, country).encodings[0]
    session.edited.put([patch])
    logits = session.model(input_ids=torch.tensor([encoding.ids])).logits[0, -1]
    session.edited.take_off(session.edited.depth - 1)
    wanted = float(logits[encoding.targets[0]])
    logits[encoding.targets[0]] = -torch.inf
    return wanted - float(logits.max())


def test_an_edit_that_never_leads_fails_alone(knowing: Session) -> None:
    found = proposed(knowing, 3, rate=1e-9, scale_max=2)
    assert found.patch is None
    assert "raise scale_max" in found.failed[request(3).id]


def test_the_first_edit_of_a_store_without_probes_is_told_the_remedy(bare: Session) -> None:
    found = proposed(bare, 3)
    assert found.patch is None and "training probes" in found.failed[request(3).id]
    assert proposed(bare, 3, 4).patch is not None


# --- the history ----------------------------------------------------------------------------------


def test_a_correction_is_applied_and_rolls_back_bit_for_bit(unwatched: Session) -> None:
    before = weights(unwatched)
    assert apply(unwatched, 3) == ["applied"]
    assert unwatched.ask(language.ask(3), tokens_max=1) == request(3).target_new
    after = weights(unwatched)
    again = reopened(unwatched)
    assert is_same(after, weights(again)) and not is_same(before, after)
    again.rollback("base")
    assert is_same(before, weights(again))
    assert not any(len(m.past_rows) for m in chosen_matrices(again.edited, UltraEditConfig()))
    again.close()


@pytest.mark.parametrize("memory", [False, True])
def test_a_history_is_built_again_to_the_same_bits(unwatched: Session, memory: bool) -> None:
    outcomes = [
        outcome
        for batch in ((0,), (2, 5), (20,))
        for outcome in apply(unwatched, *batch, memory=memory, **SEARCHED)
    ]
    assert outcomes.count("applied") >= 3
    assert all(state.is_same for state in rebuild(unwatched, unwatched.store.lineage("head")))


def test_an_edit_after_reopening_has_the_bits_of_one_without(
    made: Make, knowing_model: Path, probe_files: dict[str, Path]
) -> None:
    one = made(knowing_model, "one", watch=UNWATCHED, **probe_files)
    assert apply(one, 3, memory=True, **SEARCHED) == ["applied"]
    assert apply(one, 5, memory=True, **SEARCHED) == ["applied"]
    other = made(knowing_model, "other", watch=UNWATCHED, **probe_files)
    apply(other, 3, memory=True, **SEARCHED)
    other = reopened(other)
    apply(other, 5, memory=True, **SEARCHED)
    assert one.edited.fingerprint == other.edited.fingerprint
    assert is_same(weights(one), weights(other))
    other.close()


def test_one_of_a_batch_is_reverted_with_its_columns_and_rows(unwatched: Session) -> None:
    assert apply(unwatched, 3, 5, **SEARCHED) == ["applied", "applied"]
    both = patch_of(unwatched)
    assert "applied" in apply(unwatched, 2, 22, 28, **SEARCHED)
    later = patch_of(unwatched)
    unwatched.revert(request(3).id)
    after = weights(unwatched)
    path = both.names[0]
    rows = unwatched.edited.matrix(path).gradient_rows
    owner = both.owners.index(request(5).id)
    expected = [both.gradient_rows[path][owner : owner + 1], later.gradient_rows[path]]
    assert torch.equal(rows, torch.cat(expected))
    rest = both.without(request(3).id)
    assert rest is not None
    unwatched.edited.take_off(0)
    unwatched.edited.put([rest])
    unwatched.edited.put([later])
    assert is_same(after, weights(unwatched))


@pytest.mark.parametrize("task", ["seq2seq", "classification"])
def test_models_of_other_tasks_are_edited(made: Make, models: dict[str, Path], task: str) -> None:
    session = made(models[task], task={"name": task}, watch=UNWATCHED)
    wanted = request(3) if task == "seq2seq" else request(3, target=other_part(3))
    run = session.settings(
        chain=("ultraedit",),
        editors={"ultraedit": {"scale_max": 2**16, "blocks": [0, 1]}},
        batch_size=2,
    )
    other = request(5) if task == "seq2seq" else request(5, target=other_part(5))
    (step,) = session.apply_requests([wanted, other], run)
    assert "applied" in [outcome.outcome for outcome in step.outcomes]
    assert isinstance(patch_of(session), GradientPatch)


def other_part(country: int) -> str:
    return next(label for label in language.LABELS if label != language.part(country))


def test_by_default_later_edits_leave_earlier_ones_right(
    made: Make, knowing_model: Path, probe_files: dict[str, Path]
) -> None:
    kept: dict[bool, float] = {}
    for is_default in (True, False):
        session = made(knowing_model, f"{is_default}", watch=UNWATCHED, **probe_files)
        table = {} if is_default else {"moment_weight": 0.0, "memory": False}
        run = session.settings(chain=("ultraedit",), editors={"ultraedit": table})
        requests = [request(country) for country in range(20, 30)]
        steps = list(session.apply_requests(requests, run))
        assert sum(step.outcomes[0].outcome == "applied" for step in steps) > 5
        assert steps[-1].measured is not None and steps[-1].measured.rates.ER is not None
        kept[is_default] = steps[-1].measured.rates.ER
    assert kept[True] > kept[False]


def test_an_update_that_changes_general_text_is_taken_off_again(
    made: Make, knowing_model: Path, probe_files: dict[str, Path]
) -> None:
    """However small it is made in further attempts."""
    watched = {"texts": 16, "tokens": 8, "neighbours": 0}
    knowing = made(knowing_model, watch=watched, **probe_files)
    table = {**STRONG, "rate": 5.0}
    run = knowing.settings(chain=("ultraedit",), editors={"ultraedit": table})
    (step,) = knowing.apply_requests([request(3)], run)
    (outcome,) = step.outcomes
    assert outcome.outcome == "failed" and step.revision.patch is None
    assert "held out" in str(outcome.reason)
    assert knowing.edited.fingerprint == knowing.store.head.fingerprint


# --- the patch ------------------------------------------------------------------------------------


def test_a_patch_comes_back_from_its_file_as_it_was(knowing: Session) -> None:
    given = proposed(knowing, 3, 4).patch
    assert isinstance(given, GradientPatch)
    (found,) = unpack(*pack([given]))
    assert isinstance(found, GradientPatch) and found.owners == given.owners
    assert found.tensors().keys() == given.tensors().keys()
    assert all(torch.equal(found.tensors()[n], t) for n, t in given.tensors().items())


def test_older_versions_know_neither_its_kind_nor_that_of_its_sums() -> None:
    old = {LowRankPatch.kind, MatrixSums.kind, "low-rank", "weight-sums", "codebook", "gate"}
    assert not {GradientPatch.kind, GradientSums.kind} & old


@pytest.mark.parametrize("count", [2, 300])
def test_a_snapshot_has_the_same_bits_and_rows(knowing: Session, count: int) -> None:
    given = proposed(knowing, 3, 4).patch
    assert isinstance(given, GradientPatch)
    path = given.names[0]
    columns = [i % 2 for i in range(count)]
    wide = GradientPatch(
        {path: given.factors[path].chosen(columns)},
        {path: given.blocks[path]},
        gradient_rows={path: given.gradient_rows[path][columns]},
    )
    plain = LowRankPatch({path: given.factors[path].chosen([0])}, {path: given.blocks[path]})
    edited, parts = knowing.edited, (plain, wide, given)
    for part in parts:
        edited.put([part])
    gathered = Gathered()
    gathered.take(parts)
    snapshot = Snapshot.of(gathered, edited)
    kind = GradientPatch if count == 2 else GradientSums
    assert kind in [type(part) for part in snapshot.parts]
    read = Snapshot.from_file(*snapshot.to_file())
    assert read.is_same(snapshot)
    after, rows = weights(knowing), edited.matrix(path).gradient_rows
    assert len(rows) == count + 2
    edited.take_off(0)
    edited.put_many(read.parts, snapshot.fingerprint, snapshot.rows_state)
    assert is_same(after, weights(knowing))
    assert torch.equal(edited.matrix(path).gradient_rows, rows)


def test_a_file_without_rows_or_with_others_is_refused(knowing: Session) -> None:
    given = proposed(knowing, 3, 4).patch
    assert isinstance(given, GradientPatch)
    tensors, meta = pack([given])
    without = {name: tensor for name, tensor in tensors.items() if not name.endswith(".rows")}
    with pytest.raises(CeditError, match="rows"):
        unpack(without, meta)
    narrow = {n: t[:, :3] if n.endswith(".rows") else t for n, t in tensors.items()}
    with pytest.raises(EditError, match="needs rows of"):
        unpack(narrow, meta)


@pytest.mark.parametrize(
    "settings",
    [
        {"rate": -1.0},
        {"ridge": 0.0},
        {"warmup": -1},
        {"scale_max": 3},
        {"scale_max": 0},
        {"moment_weight": -1.0},
        {"blocks": [2, 1]},
        {"sides": "left"},
        {"margin": -0.5},
        {"rate": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(CeditError, match=r"editor\.ultraedit"):
        UltraEditConfig.of(settings)
