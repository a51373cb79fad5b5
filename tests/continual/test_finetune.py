"""The fine-tuning baselines: their equations, and their edits in a history like any other."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from continual.choices import EDITORS
from continual.editors.chains import make_editor
from continual.editors.finetune import losses
from continual.editors.finetune.config import FtAllConfig, FtLConfig
from continual.editors.finetune.editor import FtL
from continual.editors.finetune.losses import anchored, divergence, fit_status
from continual.editors.finetune.training import Diverged, Objective, TrainedDeltas, train
from continual.errors import CeditError, SharedPatch
from continual.history.rehearsing import recompute
from continual.history.replaying import verify
from continual.patches.dense import DensePatch
from continual.patches.weight_sums import ParameterSums
from continual.session import Session, open_session
from continual.site import Site
from continual.tasks import Encoding
from tests.continual.conftest import answers, reopened
from tests.continual.test_mixed_history import (
    apply,
    corrections,
    folder,  # noqa: F401
    fresh,  # noqa: F401
    is_exact,
)
from tests.tiny_language import ask, capital, correction

NAMES = ("ft-last", "ft-all", "ft-last-kl", "ft-all-kl", "ft-l")
TABLES = {  # for so small a model
    **{name: {"learning_rate": 1e-3} for name in NAMES},
    "ft-l": {"learning_rate": 5e-3, "norm_bound": 0.3, "steps_max": 50},
}
THREE = (1, 5, 12)  # countries none of whose corrections brings another with it


def edit(session: Session, name: str, countries: Sequence[int], **changes: object) -> list[object]:
    """Corrections of countries, by one editor."""
    table = {**TABLES[name], **changes.pop("table", {})}  # type: ignore[dict-item]
    records = [correction(country, rephrases=[ask(country, 1)]) for country in countries]
    return session.apply(records, editor=name, editors={name: table}, **changes)


def weights(session: Session) -> dict[str, Tensor]:
    return {name: p.clone() for name, p in session.model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def texts(site: Site, *countries: int) -> tuple[Encoding, ...]:
    """Corrections with answers of one token and of two."""
    new = [correction(country)["target_new"] for country in countries]
    answers = [f"{n} {n}" if i % 2 else n for i, n in enumerate(new)]
    return tuple(
        site.task.encode(ask(c), answer) for c, answer in zip(countries, answers, strict=True)
    )


# --- the equations, beside a plain implementation in float64 --------------------------------------


def plain_log_probs(model: torch.nn.Module, encoding: Encoding) -> Tensor:
    """[tokens, vocab] of one text, alone, at its answer positions."""
    logits = model(input_ids=torch.tensor([encoding.ids])).logits[0]
    return torch.log_softmax(logits[list(encoding.positions)], -1)


def plain_loss(model: torch.nn.Module, encodings: Sequence[Encoding]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for encoding in encodings:
        log_probs = plain_log_probs(model, encoding)
        wanted = [log_probs[i, token] for i, token in enumerate(encoding.targets)]
        total = total - sum(wanted) / len(wanted)
    return total / len(encodings)


def exact_copy(session: Session) -> torch.nn.Module:
    return copy.deepcopy(session.model).double().requires_grad_(True)


def test_the_loss_is_the_mean_over_texts_of_the_mean_over_answer_tokens(knowing):
    given = texts(knowing.site, 1, 2, 31)
    found = fit_status(knowing.site, given)
    assert float(found.loss) == pytest.approx(
        float(plain_loss(exact_copy(knowing), given).detach()), rel=1e-5
    )
    assert found.right == tuple(knowing.site.judge_in_full(given))


def test_kl_is_that_of_the_answers_before_from_those_now(knowing):
    given = texts(knowing.site, 1, 2, 31)
    before = [plain_log_probs(exact_copy(knowing), encoding).detach() for encoding in given]
    anchors = anchored(knowing.site, given)
    assert abs(float(divergence(knowing.site, anchors))) < 1e-6
    edit(knowing, "ft-all", [1])
    moved = exact_copy(knowing)
    expected = 0.0
    for encoding, old in zip(given, before, strict=True):
        now = plain_log_probs(moved, encoding).detach()
        expected += float((old.exp() * (old - now)).sum(-1).mean()) / len(given)
    assert expected > 0.01
    assert float(divergence(knowing.site, anchors)) == pytest.approx(expected, rel=1e-4)


def plain_adam(
    model: torch.nn.Module, given: Sequence[Encoding], rate: float, steps: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What Adam (Kingma & Ba 2015, algorithm 1) makes of the parameters, and the first gradient."""
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, mean, square = {}, {}, {}
    for step in range(1, steps + 1):
        model.zero_grad()
        plain_loss(model, given).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                g = p.grad
                first.setdefault(name, g.clone())
                mean[name] = 0.9 * mean.get(name, torch.zeros_like(g)) + 0.1 * g
                square[name] = 0.999 * square.get(name, torch.zeros_like(g)) + 0.001 * g * g
                m, v = mean[name] / (1 - 0.9**step), square[name] / (1 - 0.999**step)
                p -= rate * m / (v.sqrt() + 1e-8)
    return {n: p.detach() - start[n] for n, p in model.named_parameters()}, first


def trained(
    session: Session, given: tuple[Encoding, ...], steps: int, rate: float
) -> TrainedDeltas:
    paths = tuple(name for name, _ in session.model.named_parameters())
    config = FtAllConfig(learning_rate=rate, steps_max=steps)
    return train(session.site, Objective(given, paths), config)


def test_a_step_is_adams_on_every_parameter(knowing):
    given = texts(knowing.site, 1, 2)
    found = trained(knowing, given, 1, 1e-3)
    deltas, gradients = plain_adam(exact_copy(knowing), given, 1e-3, 1)
    assert found.steps == 1 and set(found.deltas) == set(deltas)
    for name, delta in deltas.items():
        # where the gradient is more than float32's rounding of it, its sign decides
        sure = gradients[name].abs() > 1e-4 * gradients[name].abs().max()
        assert torch.allclose(found.deltas[name][sure].double(), delta[sure], rtol=1e-2, atol=0)


def test_three_steps_lead_where_a_plain_implementation_leads(knowing):
    given = texts(knowing.site, 1, 2)
    found = trained(knowing, given, 3, 1e-3)
    model = exact_copy(knowing)
    before = float(plain_loss(model, given).detach())
    plain_adam(model, given, 1e-3, 3)
    after = float(plain_loss(model, given).detach())
    assert found.steps == 3 and before - after > 0.1
    assert found.loss == pytest.approx(after, rel=1e-3)


def test_the_patch_puts_on_the_very_bits_that_were_trained(knowing):
    given = texts(knowing.site, 1, 2)
    found = trained(knowing, given, 60, 3e-3)
    assert all(found.right) and found.steps < 60
    blocks = {path: knowing.edited.block_of(path) for path in found.deltas}
    knowing.edited.put([DensePatch(found.deltas, blocks)])
    assert float(fit_status(knowing.site, given).loss) == found.loss


def test_training_leaves_the_model_as_it_was_whatever_happens(knowing):
    before = weights(knowing)
    trained(knowing, texts(knowing.site, 1), 3, 1e-3)
    assert same(weights(knowing), before)

    def broken() -> Tensor:
        raise KeyboardInterrupt

    paths = tuple(before)
    given = texts(knowing.site, 1)
    with pytest.raises(KeyboardInterrupt):
        train(knowing.site, Objective(given, paths, broken), FtAllConfig())
    with pytest.raises(Diverged):
        train(knowing.site, Objective(given, paths), FtAllConfig(learning_rate=1e30))
    assert same(weights(knowing), before)
    assert not any(p.requires_grad or p.grad is not None for p in knowing.model.parameters())


# --- what each of them trains ---------------------------------------------------------------------


def touched(session: Session) -> set[str]:
    (patch,) = session.patches(session.store.head.patch)
    assert isinstance(patch, DensePatch)
    return set(patch.deltas)


@pytest.mark.parametrize("name", NAMES)
def test_each_trains_its_own_parameters(knowing, name):
    before = weights(knowing)
    edit(knowing, name, [1])
    every = set(before)
    last = {path for path in every if path.startswith("transformer.h.1.")}
    expected = {"ft-l": {"transformer.h.1.mlp.c_proj.weight"}}.get(name)
    assert touched(knowing) == (expected or (every if "all" in name else last))
    moved = {path for path, now in weights(knowing).items() if not torch.equal(now, before[path])}
    assert moved == touched(knowing)


def test_ft_l_stays_within_its_bound_and_meets_it(knowing):
    given = texts(knowing.site, 1)
    editor = FtL(FtLConfig(learning_rate=1e-2, norm_bound=0.015))
    objective = Objective(given, tuple(editor.paths(knowing.edited)), bound=editor.bound)
    found = train(knowing.site, objective, editor.config)
    (delta,) = found.deltas.values()
    bound = torch.tensor(0.015)
    assert found.steps > 2 and float(delta.abs().max()) == float(bound)
    assert (delta.abs() == bound).sum() > 10 and (delta.abs() < bound).sum() > 10


def test_rephrases_are_learned_from_where_the_settings_say_so(knowing):
    shown: list[int] = []
    real = losses.fit_status

    def counted(site: Site, encodings: Sequence[Encoding]) -> losses.FitStatus:
        shown.append(len(encodings))
        return real(site, encodings)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("continual.editors.finetune.training.fit_status", counted)
        edit(knowing, "ft-all", [1])
        assert set(shown) == {1}
        shown.clear()
        edit(knowing, "ft-all", [2], table={"rephrases": True})
        assert set(shown) == {2}
    record = correction(2)
    assert knowing.ask(ask(2, 1), tokens_max=1) == record["target_new"]


# --- in a history ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_edits_take_are_followed_exactly_and_go_back_bit_for_bit(knowing, name):
    base, before = knowing.edited.fingerprint, weights(knowing)
    for country in THREE:
        (step,) = edit(knowing, name, [country])
        assert [o.outcome for o in step.outcomes] == ["applied"], step.outcomes
        assert answers(knowing, [correction(country)]) == [True]
        assert is_exact(knowing)
    assert all(made.is_same for made in recompute(knowing, knowing.store.lineage("head")))
    middle = knowing.store.lineage("head")[2]
    knowing.rollback(middle.id)
    assert knowing.edited.fingerprint == middle.fingerprint and is_exact(knowing)
    knowing.rollback("base")
    assert knowing.edited.fingerprint == base and same(weights(knowing), before)
    path = knowing.store.path
    knowing.close()
    assert verify(path) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_resumed_comes_to_the_same_bits(made, knowing_model, probe_files, name):
    small = {"kl_memory": 6, "kl_edits": 2, "kl_batch": 2} if name.endswith("kl") else {}
    whole = made(knowing_model, "whole", **probe_files)
    parts = made(knowing_model, "parts", **probe_files)
    countries = (*THREE, 20)
    for country in countries:
        edit(whole, name, [country], table=small)
        parts = reopened(parts)
        edit(parts, name, [country], table=small)
    found = [revision.fingerprint for revision in parts.store.revisions()]
    parts.close()
    assert found == [revision.fingerprint for revision in whole.store.revisions()]
    assert len(set(found)) == len(countries) + 1


def test_many_of_them_are_kept_in_snapshots_as_their_sum(knowing, monkeypatch):
    monkeypatch.setattr("store.store.PATCHES", 2)
    session = reopened(knowing)
    for country in (*THREE, 20, 25):
        edit(session, "ft-all", [country])
    revisions = list(session.store.revisions())
    path, layers = session.store.path, session.store.layers("head")
    found = [session.states.snapshot(segment) for segment in session.store.segments(layers)]
    size = sum(p.numel() for p in session.model.parameters())
    for snapshot in found:
        (part,) = snapshot.parts
        assert isinstance(part, ParameterSums)
        assert sum(total.numel() for total in part.sums.values()) == size
    session.close()
    assert len(found) == 2 and verify(path) == []
    with open_session(path) as opened:
        for revision in (revisions[4], revisions[1], revisions[5]):
            opened.stand_at(revision)
            assert opened.edited.fingerprint == revision.fingerprint
        assert is_exact(opened)


def test_reverting_takes_one_out_of_the_middle_and_leaves_the_sum_of_the_others(knowing):
    before = weights(knowing)
    for country in THREE:
        edit(knowing, "ft-last", [country])
    lineage = knowing.store.lineage("head")
    first, second, third = (knowing.patches(revision.patch)[0] for revision in lineage[1:])
    done = knowing.revert(second.owners[0])
    assert done.rows == {"dense": 1} and done.revision.body["weight_blocks"] == [1]
    for path, now in weights(knowing).items():
        expected = before[path]
        for patch in (first, third):
            expected = expected + patch.deltas[path] if path in patch.deltas else expected
        assert torch.equal(now, expected)
    assert is_exact(knowing)


def test_one_of_a_batch_cannot_be_taken_out_but_by_making_the_step_again(knowing):
    (step,) = edit(knowing, "ft-all", THREE, batch_size=3)
    assert [o.outcome for o in step.outcomes] == ["applied"] * 3
    state = knowing.edited.fingerprint
    identity = step.outcomes[1].id
    with pytest.raises(SharedPatch, match="resolve"):
        knowing.revert(identity)
    assert knowing.edited.fingerprint == state and knowing.store.head.fingerprint == state
    done = knowing.revert(identity, resolve=True)
    assert {o.outcome for o in done.resolved} == {"applied"} and len(done.resolved) == 2
    assert answers(knowing, [correction(1), correction(12)]) == [True, True]
    assert is_exact(knowing)


def test_tpatcher_fine_tuning_and_memit_share_one_history(fresh):  # noqa: F811
    base = fresh.edited.fingerprint
    states = []
    for first, last, name in ((0, 2, "tpatcher"), (2, 3, "ft-last"), (3, 6, "memit")):
        table = {"ft-last": {"learning_rate": 3e-3}}
        apply(fresh, corrections(first, last), name, editors=table)
        apply(fresh, corrections(10 + first, 10 + first + 1), "ft-l", editors=LOOSE)
        assert is_exact(fresh), name
        states.append(fresh.edited.fingerprint)
    path = fresh.store.path
    assert all(made.is_same for made in recompute(fresh, fresh.store.lineage("head")))
    fresh.close()
    with open_session(path) as session:
        assert session.edited.fingerprint == states[-1] and is_exact(session)
        session.rollback("head~2")
        assert session.edited.fingerprint == states[1] and is_exact(session)
        session.rollback("base")
        assert session.edited.fingerprint == base
    assert verify(path) == []


LOOSE = {"ft-l": {"learning_rate": 2e-2, "norm_bound": 0.5, "steps_max": 80, "block": 0}}


# --- what KL holds on to --------------------------------------------------------------------------


def test_the_base_is_asked_once_in_a_run_and_past_edits_at_every_edit(knowing, monkeypatch):
    asked: list[tuple[bool, tuple[Encoding, ...]]] = []
    real = losses.anchored

    def noted(site: Site, encodings: Sequence[Encoding]) -> losses.Anchors:
        asked.append((site.edited._is_bare, tuple(encodings)))
        return real(site, encodings)

    monkeypatch.setattr("continual.editors.finetune.editor.anchored", noted)
    records = [correction(country) for country in THREE]
    tables = {"ft-last-kl": {**TABLES["ft-last-kl"], "kl_memory": 6, "kl_edits": 1}}
    knowing.apply(records, editor="ft-last-kl", editors=tables)
    assert [len(given) for is_base, given in asked if is_base] == [6]
    past = [given for is_base, given in asked if not is_base]
    assert [len(given) for given in past] == [0, 1, 1]
    prompts = [knowing.task.encode(r["prompt"], r["target_new"]) for r in records]
    assert past[1][0] == prompts[0] and past[2][0] in prompts[:2]


def test_what_an_edit_contradicts_is_not_held_on_to(knowing):
    known_answers = knowing.run_state.known_answers()
    assert len(known_answers.training) == 10 and not known_answers.contradicted
    edit(knowing, "ft-last-kl", [1])  # the first ten countries are the training probes
    assert knowing.run_state.known_answers().contradicted == {1}
    again = reopened(knowing)
    assert again.run_state.known_answers().contradicted == {1}
    assert list(again.run_state.known_answers().edits) == list(again.run_state.retention.requests)
    again.close()


def test_it_moves_other_answers_less(made, knowing_model, probe_files):
    moved = {}
    for name in ("ft-all", "ft-all-kl"):
        session = made(knowing_model, name, **probe_files)
        held = [session.task.encode(ask(c), capital(c)) for c in range(10) if c != 1]
        before = anchored(session.site, held)
        edit(session, name, [1], table={"kl_weight": 10.0} if name.endswith("kl") else {})
        moved[name] = float(divergence(session.site, before).detach())
    assert moved["ft-all-kl"] < moved["ft-all"]


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_training_that_diverges_fails_its_request_and_writes_nothing(knowing):
    before = weights(knowing)
    (step,) = edit(knowing, "ft-all", [1], table={"learning_rate": 1e30})
    assert [o.outcome for o in step.outcomes] == ["failed"]
    assert "NaN or infinity" in step.outcomes[0].reason
    assert "[editor.ft-all]" in step.outcomes[0].reason
    assert step.revision.patch is None and same(weights(knowing), before)
    (step,) = edit(knowing, "ft-all", [1])
    assert [o.outcome for o in step.outcomes] == ["applied"]


def test_one_that_does_not_get_there_says_how_far_it_came(knowing):
    (step,) = edit(knowing, "ft-last", [1], table={"learning_rate": 1e-6, "steps_max": 2})
    assert [o.outcome for o in step.outcomes] == ["failed"]
    assert "still wrong after 2 steps" in step.outcomes[0].reason
    assert step.revision.patch is None


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("ft-last", {"learning_rate": 0.0}, "learning_rate is more than 0"),
        ("ft-all", {"steps_max": 0}, "steps_max is at least 1"),
        ("ft-last-kl", {"kl_batch": 0}, "kl_batch is at least 1"),
        ("ft-all-kl", {"kl_weight": -1.0}, "not negative"),
        ("ft-l", {"norm_bound": 0.0}, "norm_bound is more than 0"),
        ("ft-l", {"kl_weight": 1.0}, "has no setting kl_weight"),
        ("ft-all", {"learning_rate": math.nan}, "learning_rate"),
    ],
)
def test_settings_that_do_not_do_are_refused_by_name(name, table, said):
    with pytest.raises(CeditError, match=said) as refused:
        make_editor(name, table)
    assert f"[editor.{name}]" in str(refused.value)


def test_a_block_that_the_model_has_not_is_refused(knowing):
    with pytest.raises(CeditError, match=r"\[editor.ft-l\] block = 7: the model has blocks 0 to 1"):
        edit(knowing, "ft-l", [1], table={"block": 7})


def test_every_editor_is_found_by_its_name():
    for name in EDITORS:
        assert make_editor(name, {}).name == name


def test_encoder_decoders_have_a_last_block_in_the_decoder(tmp_path: Path):
    """Which parameters are trained is a matter of anatomy alone."""
    from tests.continual.test_dense import edited

    model = edited("bart")
    paths = make_editor("ft-last", {}).paths(model)
    assert paths and all(path.startswith("model.decoder.layers.2.") for path in paths)
    assert "model.encoder.layers.0.fc1.weight" in make_editor("ft-all", {}).paths(model)
