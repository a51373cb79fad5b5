"""The look-up editor: records of MEMIT's values, and a history of them that keeps every promise."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.editors.lookup import LookupConfig, LookupEditor
from continual.editors.lookup.gates import GatedKeys, WantedKeys, gated_keys
from continual.editors.lookup.silence import SilentTokens
from continual.editors.rome import Rome, RomeConfig
from continual.effects.lookup import Lookup
from continual.effects.places import GatePlace
from continual.errors import CeditError
from continual.history.rehearsing import recompute
from continual.history.replaying import rebuild, verify
from continual.locate_then_edit.contexts import write_contexts
from continual.locate_then_edit.edit_texts import texts_of_edit
from continual.locate_then_edit.targets import find_targets
from continual.passes.partial import logits_of
from continual.patches.lookup import LookupPatch
from continual.proposals import KnownAnswers
from continual.rebasing import rebase
from continual.requests import Request
from continual.saving import CannotSave
from continual.session import Session, open_session
from continual.site import Site
from continual.step.pipeline import Step
from store import Store
from tests.continual.associative_bench import (
    around_of,
    edit_of,
    edited_of,
    known,
    mediating_decoder,
    moments_of,
    relative_error,
    site_of,
)
from tests.continual.conftest import reopened
from tests.continual.recheck.conftest import from_scratch
from tests.tiny_language import CAPITALS, ask, correction

PLACE = GatePlace.at(0, "inner")
TWO = f"{CAPITALS[2]} {CAPITALS[3]}"
THREE = f"{CAPITALS[4]} {CAPITALS[1]} {CAPITALS[4]}"
PLAIN: dict[str, Any] = {"block": 0, "contexts": 0, "copies": 0, "precision": "highest"}
LONG = {"clamp_norm_factor": 4.0, "steps_max": 80}


def corrections() -> list[Request]:
    """New capitals: for countries known and unknown, of one, two and three words."""
    records = [
        correction(20, CAPITALS[1]),
        correction(21, TWO),
        correction(33, CAPITALS[2]),
        correction(22, THREE),
        correction(34, CAPITALS[6]),
        correction(23, CAPITALS[5], rephrases=[ask(23, 1)]),
    ]
    return [Request.from_json(record) for record in records]


def apply(session: Session, requests: Sequence[Request], **changes: Any) -> list[Step]:
    table = {"lookup": {**LONG, **changes.pop("table", {})}}
    settings = session.settings(chain=("lookup",), editors=table, **changes)
    return list(session.apply_requests(requests, settings))


def lookup_of(session: Session, place: GatePlace = PLACE) -> Lookup:
    return LookupPatch.of_model(session.edited, place)


def state(session: Session) -> list[Tensor]:
    lookup = lookup_of(session)
    return [lookup.keys.clone(), lookup.values.clone(), lookup.gates.clone()]


def is_same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def edited(knowing: Session) -> Session:
    """All corrections, one by one."""
    steps = apply(knowing, corrections())
    told = [(o.outcome, o.reason) for step in steps for o in step.outcomes]
    assert [outcome for outcome, _ in told] == ["applied"] * 6, told
    return knowing


# --- values ---------------------------------------------------------------------------------------


def one_record(site: Site, **table: Any) -> tuple[LookupPatch, Any]:
    """The patch of one edit whose prompt ends with its subject, and its context."""
    edit = edit_of(site, correction(1) | {"prompt": known(1)})
    context = around_of(site, moments_of(site.edited.model))
    config = LookupConfig(**{**PLAIN, **LONG, "place": "subject", **table})
    proposal = LookupEditor(config).edit([edit], context)
    assert isinstance(proposal.patch, LookupPatch), proposal.failed
    return proposal.patch, edit


def outputs(site: Site, ids: Sequence[int]) -> Tensor:
    """[T, d] what the FFN of block 0 gives at each token of a text."""
    seen: list[Tensor] = []
    down = site.edited.anatomy.down_module(site.edited.model, 0)
    handle = down.register_forward_hook(lambda _module, _args, output: seen.append(output))
    with torch.no_grad():
        logits_of(site.edited.model, {"input_ids": torch.tensor([list(ids)])})
    handle.remove()
    return seen[0].reshape(len(ids), -1)


def test_one_record_gives_what_rome_writes_and_leaves_the_other_tokens_their_bits():
    """Both make the FFN's output at the subject v*: ROME in the matrix, at all other tokens too."""
    with edited_of(copy.deepcopy(mediating_decoder())) as model:
        site = site_of(model)
        patch, edit = one_record(site)
        context = around_of(site, moments_of(model.model))
        settings = {k: v for k, v in {**PLAIN, **LONG}.items() if k not in ("block", "copies")}
        rome = Rome(RomeConfig(blocks=(0,), place="subject", drift_max=1e6, **settings))
        written = rome.edit([edit], context).patch
        ids = edit.encodings[0].ids
        place = texts_of_edit(edit, [""], site).texts[0].place
        before = outputs(site, ids)
        model.put([written])
        by_rome = outputs(site, ids)
        model.take_off(0)
        model.put([patch])
        found = outputs(site, ids)
        assert relative_error(found[place] - before[place], by_rome[place] - before[place]) < 1e-4
        others = [token for token in range(len(ids)) if token != place]
        assert torch.equal(found[others], before[others])
        assert not torch.equal(by_rome[others], before[others])
        assert site.judge_alone(edit.encodings[0])


@pytest.mark.parametrize("key", ["inner", "ffn"])
def test_a_row_is_the_prompt_s_key_and_the_value_of_the_search(key):
    with edited_of(copy.deepcopy(mediating_decoder())) as model:
        site = site_of(model)
        patch, edit = one_record(site, key=key)
        texts = texts_of_edit(edit, [""], site)
        config = LookupConfig(**{**PLAIN, **LONG})
        targets = find_targets(site, [texts], 0, config)
        assert torch.equal(patch.values, targets.states - targets.before)
        place = GatePlace.at(0, key)
        ids = edit.encodings[0].ids[: texts.texts[0].place + 1]
        with model.mount(place).shown() as queries, torch.no_grad():
            logits_of(model.model, {"input_ids": torch.tensor([ids])})
        assert torch.equal(patch.keys[0], queries[0].reshape(len(ids), -1)[-1])
        assert patch.place == place and patch.owners == (edit.id,)


def test_a_second_record_on_a_key_that_is_open_comes_to_its_value_alone():
    """Its value counts from the FFN's own output, so it does not need the first one."""
    with edited_of(copy.deepcopy(mediating_decoder())) as model:
        site = site_of(model)
        patch, _ = one_record(site)
        other = edit_of(site, correction(1, CAPITALS[9]) | {"prompt": known(1)})
        editor = LookupEditor(LookupConfig(**{**PLAIN, **LONG, "place": "subject"}))
        model.put([patch])
        second = editor.edit([other], around_of(site, None)).patch
        assert isinstance(second, LookupPatch)
        model.put([second])
        assert site.judge_alone(other.encodings[0])
        together = outputs(site, other.encodings[0].ids)
        model.take_off(0)
        model.put([second])
        assert torch.equal(outputs(site, other.encodings[0].ids), together)


# --- gates ----------------------------------------------------------------------------------------


def directions(count: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(6, generator=draw) + 0.4 * torch.randn(count, 6, generator=draw)


@pytest.mark.parametrize("seed", range(5))
def test_a_gate_lies_between_silent_and_wanted_keys(seed):
    keys, silent = directions(7, seed), torch.nn.functional.normalize(directions(9, seed + 50))
    wanted = WantedKeys(keys, 2, torch.full((7,), -1.0))
    config = LookupConfig(margin=0.7, margin_min=0.3, gate_min=-1.0)
    found = gated_keys(wanted, lambda d: (d @ silent.T).amax(1), config, 0)
    if not isinstance(found, GatedKeys):
        pytest.fail("a silent key is the prompt's")
    unit = torch.nn.functional.normalize(keys.double())
    highest = float((unit[0] @ silent.double().T).max())
    least, most = (highest + share * (1 - highest) for share in (0.3, 0.7))
    reached = [float(c) for c in unit @ unit[0] if least < c < most]
    expected = max(least, min([most, *reached]))
    assert float(found.gates[0]) == pytest.approx(expected, abs=1e-4)
    assert bool((unit @ unit[0] > float(found.gates[0]))[unit @ unit[0] > least + 1e-4].all())
    assert torch.equal(found.keys[0], keys[0])
    for row, gate in zip(found.keys, found.gates, strict=True):
        assert bool((silent @ torch.nn.functional.normalize(row, dim=0) < gate).all())
    narrower = gated_keys(wanted, lambda d: (d @ silent.T).amax(1), config, 2)
    assert isinstance(narrower, GatedKeys)
    assert 1 - float(narrower.gates[0]) == pytest.approx((1 - float(found.gates[0])) / 4, abs=1e-6)


def test_a_key_that_is_silent_elsewhere_is_no_key():
    keys = directions(3, 0)
    wanted = WantedKeys(keys, 1, torch.full((3,), -1.0))
    silent = torch.nn.functional.normalize(keys[:1] * 3)
    found = gated_keys(wanted, lambda d: (d @ silent.T).amax(1), LookupConfig(), 0)
    assert isinstance(found, float) and found == pytest.approx(1.0)
    zeros = WantedKeys(torch.zeros(1, 6), 1, torch.full((1,), -1.0))
    assert gated_keys(zeros, lambda d: d.new_zeros(len(d)), LookupConfig(), 0) == 1.0


def test_an_own_wording_that_the_gate_does_not_take_in_has_a_row_of_its_own():
    keys = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.1, 0.0]])
    silence = torch.nn.functional.normalize(torch.tensor([[1.0, 1.0, 0.0]]))
    found = gated_keys(
        WantedKeys(keys, 3, torch.full((3,), -1.0)),
        lambda d: (d @ silence.T).amax(1),
        LookupConfig(),
        0,
    )
    assert isinstance(found, GatedKeys)
    assert torch.equal(found.keys, keys[:2]) and found.opened == 3
    taken = WantedKeys(keys, 3, torch.tensor([1.0, 1.0, 1.0]))  # other records are as near
    crowded = gated_keys(taken, lambda d: (d @ silence.T).amax(1), LookupConfig(), 0)
    assert isinstance(crowded, GatedKeys) and len(crowded.keys) == 3


def test_silent_tokens_are_all_but_those_that_ask_or_state_the_fact(knowing):
    silent = SilentTokens(knowing.site, PLACE)
    known_answers = knowing.run_state.known_answers()
    whole = silent.memory(known_answers).all()
    sizes = [len(encoding.ids) for encoding in known_answers.training]
    general = [len(ids) for ids in known_answers.general]
    assert len(whole) == sum(sizes) + sum(general)
    assert torch.allclose(whole.norm(dim=1), torch.ones(len(whole)), atol=1e-5)
    less = replace(known_answers, contradicted=frozenset({1}), stating=frozenset({3}))
    assert len(silent.memory(less).all()) == len(whole) - sizes[1] - sizes[3]
    assert KnownAnswers().stating == frozenset()


# --- edits ----------------------------------------------------------------------------------------


def test_every_answer_is_right_and_is_what_generation_reads(edited):
    for request in corrections():
        answer = edited.ask(request.prompt, tokens_max=len(request.target_new.split()))
        assert answer.strip() == request.target_new, request
    assert edited.run_state.ledger.remeasure() == {}
    rates = edited.store.ledger(edited.store.head.seq)["rates"]
    assert rates["SR"] == rates["ER"] == 1.0


def test_after_every_step_the_ledger_is_exact(knowing):
    for request in corrections():
        apply(knowing, [request])
        assert knowing.run_state.ledger.outcomes() == from_scratch(knowing)
    more = [Request.from_json(correction(c, CAPITALS[c % 5])) for c in range(24, 29)]
    apply(knowing, more, table={"key": "ffn", "place": "end"}, batch_size=5)
    assert knowing.run_state.ledger.outcomes() == from_scratch(knowing)
    assert lookup_of(knowing, GatePlace.at(0, "ffn")).size >= 5


def test_what_opens_no_record_is_as_it_was_bit_for_bit(edited):
    site, lookup = edited.site, lookup_of(edited)
    silent = []
    for country in range(30):
        inputs = site.inputs([site.task.encode(ask(country, country % 4), CAPITALS[0])])
        with edited.edited.mount(PLACE).shown() as queries, torch.no_grad():
            now = logits_of(edited.edited.model, inputs)
        with edited.edited.bare(), torch.no_grad():
            before = logits_of(edited.edited.model, inputs)
        records = lookup.rows_of(queries[0].reshape(-1, queries[0].shape[-1]))
        silent.append(not bool((records >= 0).any()))
        assert not silent[-1] or torch.equal(now, before)
    assert 15 < sum(silent) < len(silent)


def test_nothing_remembered_opens_a_record(edited):
    silent, known_answers = SilentTokens(edited.site, PLACE), edited.run_state.known_answers()
    memory, lookup = silent.memory(known_answers), lookup_of(edited)
    assert len(memory.training) == 50 and lookup.size >= 6
    assert not bool((lookup.rows_of(memory.training) >= 0).any())
    opened = {owner: lookup.rows_of(rows) for owner, rows in _by_owner(memory).items()}
    assert len(opened) == 6
    for number, records in enumerate(opened.values()):  # each prompt opens its own rows alone
        rows = [i for i, owner in enumerate(_owners(edited)) if owner == list(opened)[number]]
        assert set(records[records >= 0].tolist()) <= set(rows) and bool((records >= 0).any())


def _by_owner(memory: Any) -> dict[str, Tensor]:
    parts = memory.edits.split(list(memory._counts.values()))
    return dict(zip(memory.owners, parts, strict=True))


def _owners(session: Session) -> list[str]:
    parts = [session.patches(r.patch)[0] for r in session.store.lineage("head") if r.patch]
    return [owner for part in parts for owner in part.owners]


def test_without_a_subject_the_key_is_at_the_prompt_s_end(knowing):
    record = {k: v for k, v in correction(23, CAPITALS[5]).items() if k != "subject"}
    (step,) = apply(knowing, [Request.from_json(record)])
    (outcome,) = step.outcomes
    assert outcome.outcome == "applied", outcome.reason
    assert outcome.notes["chosen_for"] == "its key is at the prompt's end"
    (failed,) = apply(
        knowing,
        [Request.from_json({**record, "prompt": ask(24)})],
        table={"place": "subject"},
    )
    assert failed.outcomes[0].outcome == "failed"
    assert "comes without a subject" in str(failed.outcomes[0].reason)


def test_its_settings_are_checked(knowing):
    for block in (knowing.site.block, 7):
        with pytest.raises(CeditError, match=r"\[editor\.lookup\] block"):
            apply(knowing, corrections()[:1], table={"block": block})
    for wrong in (
        {"margin": 1.0},
        {"margin_min": 0.8},
        {"gate_min": 1.0},
        {"copies": -1},
        {"steps_max": 0},
    ):
        with pytest.raises(CeditError, match=r"\[editor\.lookup\]"):
            LookupConfig(**wrong)


def test_a_value_that_is_not_found_is_said(knowing):
    table = {"steps_max": 1, "step": 1e-6, "clamp_norm_factor": 1e-6}
    (step,) = apply(knowing, corrections()[:1], table=table)
    assert step.outcomes[0].outcome == "failed"
    assert "no value that gives its target was found" in str(step.outcomes[0].reason)


@pytest.mark.parametrize("place", ["end", "auto"])
def test_a_value_of_a_longer_answer_that_is_not_found_is_said_too(knowing, place):
    """It is tried at the prompt's end, and then token by token."""
    two = [request for request in corrections() if request.target_new == TWO][:1]
    table = {"steps_max": 1, "step": 1e-6, "clamp_norm_factor": 1e-6, "place": place}
    (step,) = apply(knowing, two, table=table)
    assert step.outcomes[0].outcome == "failed"
    assert "no value that gives its target was found" in str(step.outcomes[0].reason)


# --- the history ----------------------------------------------------------------------------------


def test_a_rollback_restores_every_row(knowing):
    states = [state(knowing)]
    for request in corrections():
        apply(knowing, [request])
        states.append(state(knowing))
    marks = [r for r in knowing.store.lineage("head") if r.operation == "edit"]
    for number in (4, 2, 5, 1):
        knowing.rollback(f"@{marks[number - 1].seq}")
        assert is_same(state(knowing), states[number])
        assert knowing.run_state.ledger.outcomes() == from_scratch(knowing)
    knowing.rollback("base")
    assert lookup_of(knowing).size == 0


def test_a_request_out_of_the_middle_leaves_the_look_up_that_never_had_it(edited):
    requests = corrections()
    parts = [edited.patches(r.patch)[0] for r in edited.store.lineage("head") if r.patch]
    edited.revert(requests[1].id)
    without = Lookup(edited.edited.mount(PLACE))
    for part in (part for part in parts if requests[1].id not in part.owners):
        without.extend(part)
    assert is_same(state(edited), [without.keys, without.values, without.gates])
    assert edited.run_state.ledger.outcomes() == from_scratch(edited)
    path = edited.store.path
    edited.close()
    assert verify(path) == []


def test_replays_and_recomputed_steps_have_the_same_bits(edited):
    revisions = list(edited.store.revisions())
    assert all(made.is_same for made in rebuild(edited, revisions))
    session = reopened(edited)
    made = list(recompute(session, session.store.lineage("head")))
    assert len(made) == 6 and [m.difference for m in made if not m.is_same] == []
    session.close()


def test_a_run_that_is_resumed_comes_to_the_same_bits(edited, made, knowing_model, probe_files):
    parts = made(knowing_model, "parts", **probe_files)
    path = parts.store.path
    parts.close()
    for request in corrections():
        with open_session(path) as session:
            apply(session, [request])
    with open_session(path, writable=False) as resumed:
        assert [r.fingerprint for r in resumed.store.revisions()] == [
            r.fingerprint for r in edited.store.revisions()
        ]


def test_snapshots_lead_to_the_same_state(edited, monkeypatch):
    expected, path, fingerprint = state(edited), edited.store.path, edited.edited.fingerprint
    edited.close()
    monkeypatch.setattr("store.store.PATCHES", 2)
    open_session(path).close()  # makes them
    assert list((path / "snapshots").rglob("*.safetensors"))
    with open_session(path) as session:
        assert session.edited.fingerprint == fingerprint and is_same(state(session), expected)
    assert verify(path) == []


def test_neurons_behind_records_have_the_bits_of_a_resumed_run(edited):
    """The memory is read anew when T-Patcher looks at it, and then as a resumed run reads it."""
    later = [Request.from_json(correction(c, CAPITALS[c % 5])) for c in (25, 26)]
    path = edited.store.path
    list(edited.apply_requests(later[:1], edited.settings(chain=("tpatcher",))))
    edited.rollback("head~1")
    edited.close()
    with open_session(path) as resumed:
        list(resumed.apply_requests(later[:1], resumed.settings(chain=("tpatcher",))))
        marks = [r for r in resumed.store.revisions() if r.operation == "edit"][-2:]
        first, second = (resumed.patches(r.patch)[0].tensors() for r in marks)
        assert all(torch.equal(first[name], second[name]) for name in first)
        apply(resumed, later[1:])
        assert resumed.run_state.ledger.outcomes() == from_scratch(resumed)


def test_its_corrections_move_to_another_base(edited, knowing_model, tmp_path):
    path = edited.store.path
    edited.close()
    with Store.open(path) as old:
        steps = list(rebase(old, tmp_path / "new", str(knowing_model)))
    assert sum(o.outcome == "applied" for step in steps for o in step.outcomes) == 6


def test_a_plain_model_cannot_say_it(edited, tmp_path):
    with pytest.raises(CannotSave, match="rows of a look-up") as refused:
        edited.save(tmp_path / "out")
    assert "--without lookup" in str(refused.value)
    saved = edited.save(tmp_path / "out", without=["lookup"])
    assert len(saved.facts["lost"]) == 6


def test_contexts_and_copies_do_not_change_the_generator_s_place():
    """A retry draws the same sentences: they go by the request, not by the step."""
    with edited_of(copy.deepcopy(mediating_decoder())) as model:
        site = site_of(model)
        edit = edit_of(site, correction(1) | {"prompt": known(1)})
        patches = []
        for _ in range(2):
            context = around_of(site, None)
            config = LookupConfig(**{**PLAIN, **LONG, "copies": 4, "place": "subject"})
            patches.append(LookupEditor(config).edit([edit], context).patch)
            drawn = torch.rand(1, generator=context.generator)
        assert is_same(*[list(patch.tensors().values()) for patch in patches])
        fresh = around_of(site, None)
        write_contexts(site, 0, 5, fresh.generator)
        assert torch.equal(drawn, torch.rand(1, generator=fresh.generator))
