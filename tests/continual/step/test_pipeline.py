"""The step: what is edited, what is skipped, what supersedes, and what a bad line does."""

from __future__ import annotations

import pytest
import torch

from continual.editors.tpatcher import TPatcher
from continual.errors import CeditError, OutOfMemory, StreamError
from continual.patches import pack
from continual.patches.neuron import NeuronPatch
from continual.proposals import Proposal
from continual.recheck.ledger import EDIT
from continual.recheck.metrics import Count
from continual.requests import Request
from continual.session import Session
from continual.step.settings import Recheck
from store import Draft
from tests.continual.conftest import answers, outcomes, reopened, write_lines
from tests.tiny_language import CAPITALS, COUNTRIES, POSITIONS, ask, capital, correction


def words_of(*indices: int) -> str:
    return " ".join(CAPITALS[i] for i in indices)


def active(session) -> set[str]:
    """The prompts that the model answers for, with their targets."""
    return {
        f"{kept.request.prompt} {kept.request.target_new}"
        for kept in session.run_state.retention.requests.values()
    }


# -- edits


@pytest.mark.parametrize("size", [1, 3, 7])
def test_batches_of_any_size_make_every_answer_right(bare, size):
    records = [correction(country) for country in range(10)]
    steps = bare.apply(records, batch_size=size)
    assert len(steps) == -(-10 // size)
    assert [o.outcome for step in steps for o in step.outcomes] == ["applied"] * 10
    assert answers(bare, records) == [True] * 10


def test_an_answer_of_several_tokens_becomes_right_as_a_whole(bare):
    records = [correction(1, words_of(1, 5, 3)), correction(2, words_of(2, 2, 2, 2))]
    bare.apply(records, batch_size=2)
    assert answers(bare, records) == [True, True]


def test_what_editors_keep_lasts_for_one_step(bare, monkeypatch):
    """A run that is resumed has nothing of the steps before, and comes to the same bits."""
    seen: list[list[str]] = []

    class Keeping(TPatcher):
        def edit(self, edits, context):
            seen.append(list(context.kept))
            context.kept[f"try {len(seen)}"] = object()
            return Proposal(None, {edit.id: "it does not want to" for edit in edits})

    Keeping.__name__ = "TPatcher"
    monkeypatch.setattr("continual.editors.tpatcher.TPatcher", Keeping)
    bare.apply([correction(1), correction(2)], editor="tpatcher")
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert first[0] == second[0] == [] and len(first) > 1
    assert first[1] == ["try 1"] and second[1] == [f"try {len(first) + 1}"]


def test_an_answer_longer_than_the_neurons_of_one_attempt_becomes_right(bare):
    long = correction(3, words_of(3, 1, 4, 1, 5, 9, 2, 6))
    (step,) = bare.apply([long])
    (outcome,) = step.outcomes
    assert outcome.outcome == "applied" and outcome.attempt > 1
    assert answers(bare, [long]) == [True]


def test_what_fits_no_first_attempt_does_not_harm_its_batch(bare):
    records = [correction(c) for c in range(5)]
    records.append(correction(5, words_of(3, 1, 4, 1, 5, 9, 2, 6)))
    steps = bare.apply(records, batch_size=6)
    assert [o.outcome for step in steps for o in step.outcomes] == ["applied"] * 6
    assert answers(bare, records) == [True] * 6


def test_an_outcome_says_applied_only_where_the_answer_is_right_after_the_step(bare):
    """Two prompts that the model reads as the same tokens cannot both be answered."""
    records = [
        {"prompt": "the capital of Erewhon is", "target_new": CAPITALS[1]},
        {"prompt": "the capital of Laputa is", "target_new": CAPITALS[2]},
    ]
    (step,) = bare.apply(records, batch_size=2)
    said = [outcome.outcome for outcome in step.outcomes]
    assert said == ["applied", "failed"]
    assert answers(bare, records) == [True, False]


def test_two_requests_with_one_prompt_and_one_answer_are_both_applied(bare):
    record = correction(1)
    twin = {**record, "portability": [{"prompt": ask(2), "answer": capital(2)}]}
    (step,) = bare.apply([record, twin], batch_size=2)
    assert [outcome.outcome for outcome in step.outcomes] == ["applied", "applied"]
    assert answers(bare, [record]) == [True]


def test_the_same_answer_for_prompts_of_the_same_tokens_is_given_in_separate_steps(bare):
    first = {"prompt": "the capital of Erewhon is", "target_new": CAPITALS[1]}
    second = {"prompt": "the capital of Laputa is", "target_new": CAPITALS[2]}
    steps = bare.apply([first, second])
    assert [step.outcomes[0].outcome for step in steps] == ["applied", "failed"]
    assert "cannot be told" in steps[1].outcomes[0].reason
    assert answers(bare, [first]) == [True]


# -- what is not edited


def test_what_is_right_already_is_skipped(knowing):
    right, wrong = correction(25, capital(25)), correction(26)
    (step,) = knowing.apply([right, wrong], batch_size=2)
    assert {o.id: o.outcome for o in step.outcomes} == {
        Request.from_json(right).id: "skipped",
        Request.from_json(wrong).id: "applied",
    }
    assert active(knowing) == {f"{wrong['prompt']} {wrong['target_new']}"}


def test_nothing_but_skips_leaves_the_model_as_it_is(knowing):
    before = knowing.edited.fingerprint
    (step,) = knowing.apply([correction(25, capital(25))])
    assert step.revision.patch is None and step.patch_bytes == 0
    assert step.revision.fingerprint == before == knowing.edited.fingerprint


def test_force_takes_on_what_is_right_already(knowing):
    right = correction(25, capital(25))
    (step,) = knowing.apply([right], force=True)
    assert [o.outcome for o in step.outcomes] == ["applied"]
    assert active(knowing) == {f"{right['prompt']} {right['target_new']}"}
    assert answers(knowing, [right]) == [True]


def test_a_repeat_is_dropped(bare):
    steps = bare.apply([correction(1), correction(1)])
    assert [step.outcomes[0].outcome for step in steps] == ["applied", "repeated"]
    assert steps[1].revision.patch is None


def test_a_repeat_inside_a_batch_is_edited_once(bare):
    (step,) = bare.apply([correction(1), correction(1)], batch_size=2)
    assert sorted(outcome.outcome for outcome in step.outcomes) == ["applied", "repeated"]
    assert step.measured.rates.SR == 1.0


@pytest.mark.parametrize("size", [1, 2])
def test_the_same_correction_from_another_case_is_a_repeat(bare, size):
    steps = bare.apply([correction(1, case="17"), correction(1, case="18")], batch_size=size)
    said = sorted(outcome.outcome for step in steps for outcome in step.outcomes)
    assert said == ["applied", "repeated"]


# -- superseding

A, B = correction(1, CAPITALS[1]), correction(1, CAPITALS[2])


def test_a_superseded_prompt_can_be_edited_again(bare):
    steps = bare.apply([A, B])
    assert [step.outcomes[0].outcome for step in steps] == ["applied", "applied"]
    assert steps[1].outcomes[0].supersedes == (Request.from_json(A).id,)
    assert answers(bare, [A, B]) == [False, True]
    assert active(bare) == {f"{B['prompt']} {B['target_new']}"}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("order", ["AB", "ABA", "BAB", "ABAB", "AABBAB"])
def test_the_last_word_of_a_stream_counts_whatever_the_batches(bare, order, size):
    records = [{"A": A, "B": B}[letter] for letter in order]
    bare.apply(records, batch_size=size)
    assert answers(bare, [records[-1]]) == [True]
    assert active(bare) == {f"{records[-1]['prompt']} {records[-1]['target_new']}"}


def test_a_word_taken_back_inside_one_batch_leaves_the_first(bare):
    """A stands; a batch says B, and then A again."""
    bare.apply([A])
    bare.apply([B, A], batch_size=2)
    assert answers(bare, [A]) == [True]
    assert active(bare) == {f"{A['prompt']} {A['target_new']}"}


def test_a_request_that_comes_back_is_measured_as_one(bare):
    steps = bare.apply([A, B, A, correction(2)])
    assert [s.measured.rates.ER for s in steps] == [None, None, None, 1.0]
    assert [s.measured.rates.ER_incl for s in steps] == [1.0, 1.0, 1.0, 1.0]
    again = bare.apply([A])
    assert again[0].outcomes[0].outcome == "repeated"


def test_another_prompt_on_the_same_fact_supersedes_too(bare):
    other = {**correction(1, CAPITALS[9]), "prompt": ask(1, 2)}
    bare.apply([A, other])
    assert active(bare) == {f"{other['prompt']} {other['target_new']}"}


def test_a_skipped_request_supersedes_as_well(knowing):
    """The fact was corrected, and is then given back its old answer in another phrasing."""
    wrong = correction(25)
    old = {**correction(25, capital(25)), "prompt": ask(25, 3)}
    knowing.apply([wrong, old])
    assert outcomes(knowing)[-1] in {(old["prompt"], "skipped"), (old["prompt"], "applied")}
    assert f"{wrong['prompt']} {wrong['target_new']}" not in active(knowing)


# -- failing


def test_a_request_that_fails_is_recorded_and_the_stream_goes_on(bare, tmp_path):
    records = [
        {"prompt": "the capital of Erewhon is", "target_new": CAPITALS[1]},
        {"prompt": "the capital of Laputa is", "target_new": CAPITALS[2]},
        correction(1),
    ]
    steps = bare.apply(write_lines(tmp_path / "stream.jsonl", records))
    assert [step.outcomes[0].outcome for step in steps] == ["applied", "failed", "applied"]
    entry = steps[1].revision.body["requests"][0]
    assert entry["reason"] and steps[1].revision.patch is None
    assert steps[2].measured.rates.SR == pytest.approx(2 / 3)
    assert steps[2].measured.rates.ER == pytest.approx(1 / 2)


def test_without_probes_phrasings_that_cannot_be_told_apart_fail_in_peace(bare):
    """Rephrases so different that no key fires on all of them and not on the answer's own rows."""
    record = correction(1, words_of(1, 2), rephrases=[COUNTRIES[9], ask(30, 3), "is is is is"])
    other = correction(2)
    steps = bare.apply([record, other])
    assert steps[0].outcomes[0].outcome in ("applied", "failed")
    assert steps[0].outcomes[0].outcome == ("applied" if answers(bare, [record])[0] else "failed")
    assert answers(bare, [other]) == [True]


def test_a_correction_of_what_a_training_probe_says_does_not_stop_the_stream(knowing):
    """Its query is in memory itself."""
    steps = knowing.apply([correction(3), correction(30)])
    assert [step.outcomes[0].outcome for step in steps][1] == "applied"


def test_what_failed_among_others_is_tried_alone_with_all_its_wordings(knowing, monkeypatch):
    records = [correction(c, rephrases=[ask(c, 1)]) for c in range(20, 23)]
    tried: list[tuple[int, int, int]] = []
    edit = TPatcher.edit

    def crowded(self, edits, edit_context):
        """The last of several is told that it cannot be."""
        tried.append((len(edits), edit_context.attempt, len(edits[-1].encodings)))
        if len(edits) == 1:
            return edit(self, edits, edit_context)
        done = edit(self, edits[:-1], edit_context)
        return Proposal(done.patch, {**done.failed, edits[-1].id: "too crowded"}, done.notes)

    monkeypatch.setattr(TPatcher, "edit", crowded)
    (step,) = knowing.apply(records, batch_size=3)
    assert tried == [(3, 0, 2), (1, 0, 2)]
    assert [(o.outcome, o.attempt) for o in step.outcomes] == [("applied", 1)] * 3
    assert answers(knowing, records) == [True] * 3


def test_a_patch_that_breaks_an_earlier_edit_of_its_step_is_refused(bare, monkeypatch):
    records = [correction(1), correction(2)]
    edit = TPatcher.edit
    queries = []

    def reckless(self, edits, edit_context):
        """The second edit's first patch has a neuron more, which fires on the first edit."""
        if len(edits) == 2:
            queries.append(edits[0].rows[0].query[:1])
            done = edit(self, edits[:1], edit_context)
            return Proposal(done.patch, {edits[1].id: "too crowded"}, done.notes)
        done = edit(self, edits, edit_context)
        if edit_context.attempt:
            return done
        (query,) = queries
        harm = NeuronPatch(
            done.patch.block, query / query.square().sum(), torch.tensor([-0.5]), 1e3 * query
        )
        return Proposal(NeuronPatch.joined([done.patch, harm])[0], done.failed, done.notes)

    monkeypatch.setattr(TPatcher, "edit", reckless)
    monkeypatch.setattr(TPatcher, "objection", lambda *_: None)
    (step,) = bare.apply(records, batch_size=2)
    assert [(o.outcome, o.attempt) for o in step.outcomes] == [("applied", 1), ("applied", 2)]
    assert answers(bare, records) == [True, True]


@pytest.mark.parametrize(("size", "remedy"), [(1, "rest where"), (2, "smaller batches than 2")])
def test_a_step_without_memory_leaves_all_before_it_and_the_next_goes_on(
    bare, monkeypatch, size, remedy
):
    """PyTorch's own allocator refuses, in the middle of a step."""
    records = [correction(country) for country in range(2 + size)]
    bare.apply(records[:2])
    before = bare.store.head, bare.edited.fingerprint
    with monkeypatch.context() as starved:
        starved.setattr(TPatcher, "edit", lambda *_: torch.empty(2**52))
        with pytest.raises(OutOfMemory, match=rf"ran out .*: step 3 was not made.*{remedy}"):
            bare.apply(records[2:], batch_size=size)
    assert (bare.store.head, bare.edited.fingerprint) == before
    bare.apply(records[2:], batch_size=size)
    assert answers(bare, records) == [True] * len(records)


# -- repair


def break_edit(session: Session, record: dict) -> Session:
    """Commit a neuron that fires on a correction's own query and leads elsewhere; reopen."""
    identity = Request.from_json(record).id
    query = session.run_state.ledger.rows_of(identity, EDIT).query[:1]
    hidden = session.run_state.ledger.rows_of(identity, EDIT).hidden[:1]
    key = 10 * query / query.square().sum()
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    value = 20 * noise / noise.norm() * hidden.norm()
    last = session.edited.anatomy.last
    patch = NeuronPatch(last, key, torch.tensor([-9.0]), value)
    session.edited.put([patch])
    tensors, meta = pack([patch])
    session.store.commit(
        Draft(
            operation="edit",
            parent=session.store.head.id,
            fingerprint=session.edited.fingerprint,
            tensors=tensors,
            patch_meta=meta,
        )
    )
    return reopened(session)


def test_a_broken_edit_is_repaired_in_the_next_step_where_that_is_asked_for(knowing):
    records = [correction(20), correction(21), correction(22)]
    knowing.apply(records)
    session = break_edit(knowing, records[1])
    try:
        session.settle()
        assert answers(session, records) == [True, False, True]
        assert session.store.ledger(4)["rates"]["ER"] == pytest.approx(2 / 3)  # the raw one
        (plain,) = session.apply([correction(23)])
        assert answers(session, records) == [True, False, True]
        assert plain.measured.rates.ER == pytest.approx(2 / 3)
        (step,) = session.apply([correction(24)], repair=True)
        assert answers(session, records) == [True, True, True]
        assert [(o.outcome, o.repair) for o in step.outcomes] == [
            ("applied", True),
            ("applied", False),
        ]
        assert (step.measured.rates.SR, step.measured.rates.ER) == (1.0, 1.0)
        assert session.run_state.retention.attempts == Count(5, 5)  # a repair is none
        (after,) = session.apply([correction(25)], repair=True)
        assert len(after.outcomes) == 1
    finally:
        session.close()


def test_a_broken_edit_that_comes_again_is_edited_and_not_taken_for_a_repeat(knowing):
    records = [correction(20), correction(21)]
    knowing.apply(records)
    session = break_edit(knowing, records[0])
    try:
        (step,) = session.apply([records[0]])
        assert [o.outcome for o in step.outcomes] == ["applied"]
        assert answers(session, records) == [True, True]
    finally:
        session.close()


def test_a_broken_edit_that_is_superseded_is_not_repaired(knowing):
    broken, other = correction(20), correction(20, CAPITALS[1])
    knowing.apply([broken])
    session = break_edit(knowing, broken)
    try:
        (step,) = session.apply([other], repair=True)
        assert [(o.id, o.outcome) for o in step.outcomes] == [
            (Request.from_json(other).id, "applied")
        ]
        assert answers(session, [other]) == [True]
    finally:
        session.close()


# -- bad lines


def test_bad_lines_go_to_quarantine_with_their_numbers(bare, tmp_path):
    long_prompt = " ".join(["the"] * 600)
    lines = [
        correction(1),
        "{not json",
        "",
        correction(2, target=" ".join(["is"] * 520)),
        {"prompt": "", "target_new": "x"},
        {"prompt": long_prompt, "target_new": CAPITALS[1]},
        correction(3),
        "[1, 2]",
    ]
    stream = write_lines(tmp_path / "stream.jsonl", lines)
    bare.apply(stream, batch_size=2)
    found = {entry["line"]: entry["reason"] for entry in bare.store.quarantined()}
    assert sorted(found) == [2, 4, 5, 6, 8]
    assert "not JSON" in found[2] and "520 tokens" in found[4] and "600 tokens" in found[6]
    assert answers(bare, [correction(1), correction(3)]) == [True, True]
    numbers = [n for r in bare.store.lineage("head") for n in r.body.get("quarantined", ())]
    assert numbers == [2, 4, 5, 6, 8]
    again = reopened(bare)
    try:
        assert again.apply(stream) == []
        assert [entry["line"] for entry in again.store.quarantined()] == [2, 4, 5, 6, 8]
    finally:
        again.close()


@pytest.mark.parametrize("field", ["prompt", "rephrases", "locality"])
def test_a_text_longer_than_the_model_reads_is_a_bad_line(bare, tmp_path, field):
    """Within the task's own limits, and past the model's positions."""
    long = " ".join(["the"] * (POSITIONS + 5))
    given = {
        "prompt": long,
        "rephrases": [long],
        "locality": [{"prompt": long, "answer": CAPITALS[0]}],
    }
    lines = [correction(1), {**correction(2), field: given[field]}, correction(3)]
    bare.apply(write_lines(tmp_path / "stream.jsonl", lines))
    assert [entry["line"] for entry in bare.store.quarantined()] == [2]
    assert answers(bare, [correction(1), correction(3)]) == [True, True]


def test_a_prompt_with_its_answer_just_as_long_as_the_model_reads_is_edited(bare):
    fits = {"prompt": " ".join(["the"] * POSITIONS), "target_new": CAPITALS[1]}
    assert bare.apply([fits])[0].outcomes[0].outcome == "applied"


def test_a_strict_run_stops_at_the_first_bad_line(bare, tmp_path):
    stream = write_lines(tmp_path / "stream.jsonl", [correction(1), "{", correction(2)])
    with pytest.raises(StreamError, match="record 2"):
        bare.apply(stream, strict=True)
    assert outcomes(bare) == [(ask(1), "applied")]
    assert list(bare.store.quarantined()) == []
    write_lines(stream, [correction(1), correction(4), correction(2)])
    bare.apply(stream, strict=True)
    assert outcomes(bare) == [(ask(c), "applied") for c in (1, 4, 2)]


def test_a_stream_of_bad_lines_alone_is_a_step_without_requests(bare, tmp_path):
    (step,) = bare.apply(write_lines(tmp_path / "stream.jsonl", ["{", "}"]))
    assert step.outcomes == () and [item.number for item in step.quarantined] == [1, 2]


def test_what_a_replaced_file_has_in_the_same_places_is_quarantined_too(bare, tmp_path):
    stream = write_lines(tmp_path / "stream.jsonl", ["{first", correction(1)])
    bare.apply(stream)
    write_lines(stream, ["{second", correction(1)])
    bare.apply(stream)
    assert [entry["raw"] for entry in bare.store.quarantined()] == ["{first", "{second"]


# -- settings


def test_how_to_recheck_is_read_strictly():
    assert Recheck.parse("exact") == Recheck()
    assert Recheck.parse("full") == Recheck(full=True)
    assert Recheck.parse("every=5") == Recheck(every=5)
    for text in ("", "every", "every=", "every=0", "every=-1", "every=1.5", "often"):
        with pytest.raises(CeditError):
            Recheck.parse(text)


def test_a_recheck_every_third_step_records_every_third(bare):
    steps = bare.apply([correction(c) for c in range(6)], recheck=Recheck(every=3))
    assert [step.measured is not None for step in steps] == [False, False, True] * 2
    assert steps[5].measured.rates.ER_incl == 1.0
