"""One history of neurons, weight edits and records: routed to the outside, exact, reversible."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from continual.errors import CeditError
from continual.history.reembedding import reembed
from continual.history.rehearsing import recompute
from continual.history.replaying import rebuild, verify
from continual.memory.answers import AnswerJudge
from continual.memory.recall import ScopeChanged
from continual.recheck.ledger import EDIT, HELD_OUT, LOCALITY
from continual.recheck.retention import outcomes_of
from continual.recheck.run_state import RunState
from continual.requests import Request
from continual.session import Session, open_session
from continual.step.pipeline import Step
from continual.step.settings import Recheck
from tests import tiny_language as language
from tests.continual.conftest import answers, outcomes, reopened
from tests.tiny_language import CAPITALS, ask, capital
from tests.tiny_memories import WordScope, about

# on a decoder in which it can only strengthen what is known: its matrices move all the same
MEMIT = {"clamp_norm_factor": 4.0, "drift_max": 20.0, "contexts": 0, "moment_weight": 0.1}
MEMIT |= {"stop_loss": 1e-4}
QUICK = {"tpatcher": {"steps_max": 20, "value_steps_max": 25}, "memit": MEMIT}


def apply(session: Session, records: list[dict[str, Any]], *chain: str, **more: Any) -> list[Step]:
    requests = [Request.from_json(record) for record in records]
    settings = session.settings(chain=chain, **{"editors": QUICK, **more})
    return list(session.apply_requests(requests, settings))


def from_scratch(session: Session) -> dict[str, bool]:
    """Every active probe by whoever answers it, found and asked anew."""
    wanted = session.run_state.ledger.outcomes()
    entries = {e.key: e for e in session.run_state.ledger.entries if e.key in wanted}
    found = AnswerJudge(session.site).judge_in_full([e.encoding for e in entries.values()])
    return dict(zip(entries, found, strict=True))


def routes(session: Session) -> dict[str, Any]:
    ledger = session.run_state.ledger
    active = ledger.outcomes()
    return {e.key: ledger.route(e) for e in ledger.entries if e.key in active}


def is_exact(session: Session) -> bool:
    """Followed, measured from scratch, and built anew from the journal: all the same."""
    found, followed = session.run_state.ledger.outcomes(), routes(session)
    again = RunState(session.store, session.site).ledger
    return (
        found == from_scratch(session) == again.outcomes()
        and session.run_state.ledger.remeasure() == {}
        and routes(session) == followed
    )


# -- one model to the outside


@pytest.mark.parametrize("method", ["serac", "ike"])
def test_what_is_asked_about_an_edit_is_answered_by_it_and_all_else_as_before(reader, method):
    own = {c: reader.ask(ask(c), tokens_max=1) for c in range(40)}
    records = [about(20, CAPITALS[0]), about(25, CAPITALS[1])]
    (one, _) = apply(reader, records, method)
    assert one.outcomes[0].editor == method
    assert answers(reader, records) == [True, True]
    assert reader.ask(ask(20, 2), tokens_max=1) == CAPITALS[0]
    for country in set(range(40)) - {20, 25}:
        assert reader.ask(ask(country), tokens_max=1) == own[country]
    assert one.measured.rates.SR == one.measured.rates.GR == 1.0
    assert reader.edited.model.state_dict().keys() and not one.outcomes[0].notes.get("neurons")


def test_an_answer_says_which_edit_it_is_from(reader):
    apply(reader, [about(20, CAPITALS[0])], "serac")
    said = reader.answer(ask(20, 1), tokens_max=1)
    assert said.route is not None and said.text == CAPITALS[0]
    assert said.route.record.prompt == ask(20) and 0.85 <= said.route.score < 1.0
    assert reader.answer(ask(3), tokens_max=1).route is None


def generated(session: Session, prompts: list[str], **options: Any) -> torch.Tensor:
    inputs = session.tokenizer(prompts, return_tensors="pt", padding=True)
    defaults = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    return session.model.generate(**inputs, **{**defaults, **options})


def test_a_batch_is_routed_row_by_row(reader):
    prompts = [ask(3), ask(20), ask(25, 1), ask(9, 2), ask(20, 2)]
    reader.tokenizer.padding_side = "left"
    before = generated(reader, prompts)
    apply(reader, [about(20, CAPITALS[0]), about(25, CAPITALS[1])], "serac")
    after = generated(reader, prompts)
    assert torch.equal(after[[0, 3]], before[[0, 3]])
    size = before.shape[1] - 2
    assert torch.equal(after[:, :size], before[:, :size])
    answered = reader.tokenizer.convert_ids_to_tokens(after[[1, 2, 4], size])
    assert answered == [CAPITALS[0], CAPITALS[1], CAPITALS[0]]
    with reader.edited.bare():
        assert torch.equal(generated(reader, prompts), before)
    reader.rollback("base")
    assert torch.equal(generated(reader, prompts), before)


def test_options_of_generate_reach_the_reader(reader):
    apply(reader, [about(20, CAPITALS[0])], "serac")
    several = generated(reader, [ask(20)], num_return_sequences=2, num_beams=2)
    assert len(several) == 2
    longer = generated(reader, [ask(20)], max_new_tokens=100)
    assert longer.shape[1] <= language.POSITIONS
    bounded = reader.model.generate(
        **reader.tokenizer(ask(20), return_tensors="pt"), max_length=8, pad_token_id=0
    )
    assert bounded.shape[1] == 8


def test_what_a_routed_answer_cannot_give_is_refused(reader):
    apply(reader, [about(20, CAPITALS[0])], "serac")
    with pytest.raises(Exception, match="return_dict_in_generate"):
        generated(reader, [ask(20)], return_dict_in_generate=True)
    assert generated(reader, [ask(3)], return_dict_in_generate=True).sequences is not None


def test_a_copy_that_would_answer_without_its_records_is_refused(reader):
    before = generated(reader, [ask(20), ask(3)])
    apply(reader, [about(20, CAPITALS[0])], "serac")
    with pytest.raises(CeditError, match="1 records in memory"):
        copy.deepcopy(reader.model)
    reader.rollback("base")
    copied = copy.deepcopy(reader.model)
    apply(reader, [about(20, CAPITALS[1])], "serac")
    inputs = reader.tokenizer([ask(20), ask(3)], return_tensors="pt", padding=True)
    own = copied.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert torch.equal(own, before)
    assert not torch.equal(generated(reader, [ask(20), ask(3)]), before)


def test_a_model_without_memory_loads_no_scope(reader, scope):
    apply(reader, [about(20, CAPITALS[0])], "tpatcher")
    reader.ask(ask(20))
    assert scope.embedded == []


# -- the step


def test_what_the_memory_answers_rightly_is_skipped(reader):
    apply(reader, [about(20, CAPITALS[0])], "serac")
    again = {"prompt": ask(20, 1), "target_new": CAPITALS[0]}
    (step,) = apply(reader, [again], "tpatcher")
    assert step.outcomes[0].outcome == "skipped"


def test_an_edit_that_tpatcher_makes_takes_the_record_of_what_it_supersedes(reader):
    apply(reader, [about(20, CAPITALS[0])], "serac")
    (step,) = apply(reader, [about(20, CAPITALS[1])], "tpatcher")
    assert step.outcomes[0].outcome == "applied" and step.outcomes[0].supersedes
    assert len(reader.edited.memory) == 0
    assert reader.ask(ask(20), tokens_max=1) == CAPITALS[1]
    assert is_exact(reader)
    reader.rollback("head~1")
    assert len(reader.edited.memory) == 1
    assert reader.ask(ask(20), tokens_max=1) == CAPITALS[0]
    assert is_exact(reader)


def test_going_back_to_what_the_model_knows_takes_the_record_and_needs_no_edit(reader):
    apply(reader, [about(12, CAPITALS[0])], "serac")
    (step,) = apply(reader, [about(12, capital(12))], "serac")
    assert step.outcomes[0].outcome == "skipped"
    assert reader.ask(ask(12), tokens_max=1) == capital(12)
    assert step.revision.patch is not None and len(reader.edited.memory) == 0
    assert is_exact(reader)


def test_a_neuron_under_a_record_that_answers_otherwise_is_not_enough(reader, scope):
    """Another record captures the prompt: the neuron is right, the model to the outside is not."""
    scope.threshold = 0.1
    apply(reader, [about(20, CAPITALS[0])], "serac")
    (step,) = apply(reader, [about(23, CAPITALS[1])], "tpatcher", "serac")
    assert step.outcomes[0].editor == "serac"
    assert "not answered rightly" in step.outcomes[0].notes["passed_by"]["tpatcher"]
    assert reader.ask(ask(23), tokens_max=1) == CAPITALS[1]


def test_a_record_that_is_not_read_rightly_is_refused(reader, scope):
    long = " ".join(CAPITALS[:3])  # the decoder was never told three words
    (step,) = apply(reader, [about(20, long)], "serac")
    assert step.outcomes[0].outcome == "failed"
    assert "even with the correction in front of it" in str(step.outcomes[0].reason)
    assert step.revision.patch is None and scope.embedded == []


def test_a_context_without_room_is_refused_with_its_reason(reader):
    wordy = " ".join(["the"] * 40)
    (step,) = apply(reader, [{"prompt": wordy, "target_new": CAPITALS[0]}], "serac")
    assert "longer than the model reads" in str(step.outcomes[0].reason)


def test_the_memory_is_the_last_link(reader):
    records = [about(20, CAPITALS[0]), about(21, CAPITALS[3])]
    steps = apply(reader, records, "tpatcher", "serac", editors={"tpatcher": {"norm_max": 1e-6}})
    assert [s.outcomes[0].editor for s in steps] == ["serac", "serac"]
    assert all("budget" in s.outcomes[0].notes["passed_by"]["tpatcher"] for s in steps)
    assert answers(reader, records) == [True, True]


def test_a_broken_record_is_mended_by_another_editor(reader, scope):
    apply(reader, [about(20, CAPITALS[0])], "serac")
    scope.threshold = 1.1  # nothing is in scope any more, as with another configuration
    again = reopened(reader)
    try:
        assert again.run_state.ledger.count(EDIT).right == 0
        (step,) = apply(again, [about(30, CAPITALS[1])], "tpatcher", repair=True)
        assert [o.outcome for o in step.outcomes] == ["applied", "applied"]
        assert len(again.edited.memory) == 0
        assert again.run_state.ledger.count(EDIT).right == 2
        assert is_exact(again)
    finally:
        again.close()


def test_a_step_that_breaks_off_behind_a_removal_leaves_the_record(reader, monkeypatch):
    apply(reader, [about(20, CAPITALS[0])], "serac")
    before = reader.edited.fingerprint

    def fail(*_: object) -> None:
        raise RuntimeError("not now")

    for place in (
        "continual.editors.tpatcher.TPatcher.edit",
        "continual.step.planning.Planner._is_right",
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, fail)
            with pytest.raises(RuntimeError, match="not now"):
                apply(reader, [about(20, CAPITALS[1])], "tpatcher")
        assert reader.edited.fingerprint == before
        assert reader.ask(ask(20), tokens_max=1) == CAPITALS[0]


# -- the ledger


def mixture(session: Session) -> list[tuple[tuple[str, ...], list[dict[str, Any]], int]]:
    return [
        (("tpatcher",), [about(c) for c in (20, 21, 22)], 1),
        (("serac",), [about(c, CAPITALS[c - 20]) for c in range(23, 29)], 2),
        (("memit",), [about(c, capital(c)) for c in (5, 6, 7, 15)], 4),
        (("ike",), [about(24, CAPITALS[30]), about(29, CAPITALS[4])], 1),  # the first supersedes
        (("tpatcher", "serac"), [about(c) for c in (25, 3, 12, 34)], 1),  # as do some of these
        (("memit",), [about(c, capital(c)) for c in (8, 16)], 2),
        (("serac",), [about(20, CAPITALS[9]), about(26, capital(26))], 1),
    ]


@pytest.fixture
def studied(reader: Session) -> Session:
    """With the statistics that MEMIT needs."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(language.words()[3:], k=30)) for _ in range(300)]
    for _ in reader.statistics.collect(texts):
        pass
    return reader


def test_after_every_step_of_a_mixed_history_the_ledger_is_exact(studied):
    turned = 0
    for chain, records, size in mixture(studied):
        forced = chain == ("memit",)
        for step in apply(studied, records, *chain, batch_size=size, force=forced):
            turned += len(step.measured.turned)
        assert is_exact(studied), chain
    answered = [route for route in routes(studied).values() if route is not None]
    assert {route.method for route in answered} == {"serac", "ike"}
    assert studied.edited.reach.blocks
    assert {key.split(":")[1] for key, r in routes(studied).items() if r} >= {EDIT, HELD_OUT}
    assert turned > 20
    for name in ("@9", "@4", "@14", "base"):
        studied.rollback(name)
        assert is_exact(studied), name
    apply(studied, [about(24, CAPITALS[2])], "serac")
    assert is_exact(studied)
    studied.close()
    assert verify(studied.store.path) == []


def test_a_loose_scope_breaks_neighbours_and_the_ledger_sees_it(reader, scope):
    scope.threshold = 0.2  # records answer for other countries too
    steps = apply(reader, [about(c, CAPITALS[c - 20]) for c in range(20, 32)], "serac")
    assert steps[-1].measured.rates.TestR < 1.0
    assert reader.run_state.ledger.count(LOCALITY).rate < 1.0
    assert is_exact(reader)


@pytest.mark.parametrize("how", [Recheck(full=True), Recheck(every=3)])
def test_other_ways_to_recheck_come_to_the_same_records(reader, how, tmp_path):
    records = [about(c, CAPITALS[c - 20]) for c in range(20, 26)] + [about(21, CAPITALS[30])]
    apply(reader, records, "serac", recheck=how)
    reader.settle()
    found = reader.store.ledger(reader.store.head.seq)["rates"]
    outcome = reader.run_state.ledger.outcomes()
    reader.rollback("base")
    apply(reader, records, "serac")
    assert reader.store.ledger(reader.store.head.seq)["rates"] == found
    assert reader.run_state.ledger.outcomes() == outcome


def test_a_run_that_is_resumed_comes_to_the_same_bits(reader):
    records = [about(c, CAPITALS[c - 20]) for c in range(20, 26)] + [about(21, CAPITALS[30])]
    whole = [s.revision.fingerprint for s in apply(reader, records, "serac")]
    reader.rollback("base")
    path = reader.store.path
    reader.close()
    resumed = []
    for record in records:
        with open_session(path) as session:
            resumed += [s.revision.fingerprint for s in apply(session, [record], "serac")]
    assert resumed == whole


def test_every_revision_comes_back_bit_for_bit_without_any_scope(reader, monkeypatch):
    apply(reader, [about(c, CAPITALS[c - 20]) for c in (20, 21, 20)], "serac")
    monkeypatch.setattr("continual.memory.recall.make_scope", None)
    again = reopened(reader)
    try:
        assert all(made.is_same for made in rebuild(again, list(again.store.revisions())))
    finally:
        again.close()


# -- a changed scope


def test_records_of_another_encoder_are_not_mixed(reader, monkeypatch):
    apply(reader, [about(20, CAPITALS[0])], "serac")
    other = WordScope(fingerprint="another")
    monkeypatch.setattr("continual.memory.recall.make_scope", lambda config: other)
    again = reopened(reader)
    try:
        for asked in (lambda: again.ask(ask(20)), lambda: apply(again, [about(3)], "serac")):
            with pytest.raises(ScopeChanged, match="cedit reembed") as refused:
                asked()
            assert refused.value.exit_code == 20
    finally:
        again.close()


class Mirrored(WordScope):
    """The same words, other vectors."""

    def _embed(self, texts):
        return super()._embed(texts).flip(-1)


def test_a_memory_that_is_embedded_anew_answers_as_before(reader, monkeypatch):
    records = [about(20, CAPITALS[0]), about(21, CAPITALS[1]), about(20, CAPITALS[2])]
    apply(reader, records, "serac")
    apply(reader, [about(22)], "tpatcher")
    before = reader.store.head
    other = Mirrored(fingerprint="another")
    monkeypatch.setattr("continual.memory.recall.make_scope", lambda config: other)
    again = reopened(reader)
    try:
        done = reembed(again)
        assert done.records == 3 and done.revision.operation == "re-embed"
        assert again.edited.memory.scopes == {"another"}
        assert answers(again, records[1:]) == [True, True]
        assert is_exact(again)
        assert again.store.ledger(done.revision.seq)["rates"]["ER_incl"] == 1.0
        with pytest.raises(CeditError, match="nothing to embed anew"):
            reembed(again)
        again.revert(Request.from_json(records[1]).id)
        assert len(again.edited.memory) == 1 and is_exact(again)
        again.rollback(before.id)
        with pytest.raises(ScopeChanged):
            again.ask(ask(20))
        again.close()
        assert verify(again.store.path) == []
    finally:
        again.close()


# -- with the rest of a history


def test_a_reverted_record_gives_its_place_back_to_what_it_superseded(reader):
    first, second = about(20, CAPITALS[0]), about(20, CAPITALS[1])
    apply(reader, [first, about(21, CAPITALS[5]), second], "serac")
    reader.revert(Request.from_json(second).id)
    assert answers(reader, [first]) == [True]
    assert is_exact(reader)
    reader.revert(Request.from_json(first).id)
    assert len(reader.edited.memory) == 1
    assert reader.answer(ask(20)).route is None
    apply(reader, [second], "serac")
    assert answers(reader, [second]) == [True]
    assert is_exact(reader)


def test_steps_are_made_again_bit_for_bit(studied):
    for chain, records, size in mixture(studied):
        apply(studied, records, *chain, batch_size=size, force=chain == ("memit",))
    made = list(recompute(studied, studied.store.lineage("head")))
    assert len(made) > 10 and all(one.is_same for one in made)
    assert {o.editor for r in studied.store.revisions() for o in outcomes_of(r.body)} >= {
        "tpatcher",
        "serac",
        "memit",
        "ike",
    }


def test_outcomes_are_recorded_as_ever(reader):
    apply(reader, [about(20, CAPITALS[0])], "serac")
    assert outcomes(reader) == [(ask(20), "applied")]
