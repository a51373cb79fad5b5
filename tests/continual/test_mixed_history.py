"""One history of neurons and weight edits: exact, resumable, reversible, mended."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from continual.editors.memit import Memit
from continual.history.inspection import details, difference
from continual.history.replaying import rebuild, verify
from continual.new_store import NewStore, init
from continual.recheck import probing
from continual.requests import Request
from continual.session import Session, open_session
from continual.step.editing import OVER_BUDGET_MAX
from continual.step.pipeline import Step
from tests import tiny_language as language
from tests.continual.associative_bench import known, mediating_decoder
from tests.continual.conftest import write_lines
from tests.continual.recheck.conftest import from_scratch
from tests.tiny_language import CAPITALS, COUNTRIES, capital

FIRST = 12  # the countries from here on are corrected; those before are probes


def corrections(first: int, last: int) -> list[Request]:
    """New capitals for some countries, by their numbers from `FIRST` on."""
    return [_correction(FIRST + number) for number in range(first, last)]


def _correction(country: int) -> Request:
    others = [c for c in CAPITALS if c != capital(country)]
    record = {
        "prompt": known(country),
        "target_new": others[(5 * country) % len(others)],
        "subject": COUNTRIES[country],
        "relation": "capital",
        "rephrases": [known(country, 1)],
        "held_out_rephrases": [known(country, 2)],
        "locality": [{"prompt": known(country % FIRST), "answer": capital(country % FIRST)}],
    }
    return Request.from_json(record)


LONG = {"clamp_norm_factor": 4.0, "drift_max": 20.0, "contexts": 0}
TABLES: dict[str, dict[str, Any]] = {  # for so small a model, whose states are short
    "memit": {**LONG, "moment_weight": 1.0},
    "emmet": LONG,
    "rome": LONG,
    "alphaedit": {**LONG, "nullspace_threshold": 0.0, "nullspace_share": 0.5, "ridge": 0.1},
}


def apply(session: Session, requests: list[Request], *chain: str, **changes: Any) -> list[Step]:
    tables = {
        name: {**TABLES.get(name, {}), **changes.get("editors", {}).get(name, {})} for name in chain
    }
    changes = {"batch_size": len(requests), **changes, "editors": tables}
    settings = session.settings(chain=chain, **changes)
    return list(session.apply_requests(requests, settings))


def is_exact(session: Session) -> bool:
    """Whether the ledger has what measuring every probe from scratch finds."""
    return session.run_state.ledger.outcomes() == from_scratch(session)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store on a decoder that can be edited at subjects, with the statistics of its blocks."""
    folder = tmp_path_factory.mktemp("mixed")
    model = language.save_decoder(folder / "model", mediating_decoder())
    files = {
        f"{name}_probes": write_lines(
            folder / f"{name}.jsonl",
            [{"prompt": known(c, ending), "answer": capital(c)} for c in range(FIRST)],
        )
        for ending, name in enumerate(("train", "test"))
    }
    draw = random.Random(0)
    texts = [" ".join(draw.choices(language.words()[3:], k=30)) for _ in range(400)]
    with init(folder / "store", NewStore(str(model), **files)) as session:
        for _ in session.statistics.collect(texts):
            pass
    return folder


@pytest.fixture
def fresh(folder: Path, tmp_path: Path) -> Iterator[Session]:
    """A copy of it that is open."""
    shutil.copytree(folder / "store", tmp_path / "store")
    with open_session(tmp_path / "store") as session:
        yield session


MIXTURE: tuple[tuple[tuple[int, int], tuple[str, ...], int], ...] = (
    ((0, 3), ("tpatcher",), 1),
    ((3, 9), ("memit",), 6),
    ((9, 11), ("tpatcher",), 1),
    ((11, 14), ("alphaedit",), 3),
    ((14, 16), ("rome",), 2),
    ((16, 18), ("tpatcher",), 2),
    ((18, 22), ("emmet", "tpatcher"), 4),
)


def apply_mixture(session: Session, parts: Any = MIXTURE) -> list[Step]:
    steps: list[Step] = []
    for (first, last), chain, size in parts:
        steps += apply(session, corrections(first, last), *chain, batch_size=size)
    return steps


@pytest.fixture(scope="module")
def mixed(folder: Path) -> Path:
    """The store with the whole mixture applied."""
    shutil.copytree(folder / "store", folder / "mixed")
    with open_session(folder / "mixed") as session:
        apply_mixture(session)
    return folder / "mixed"


def test_most_edits_of_every_kind_take_and_are_kept(mixed):
    with open_session(mixed, writable=False) as session:
        rates = session.store.ledger(session.store.head.seq)["rates"]
        assert rates["SR"] >= 0.95 and rates["ER_incl"] >= 0.95 and rates["TestR"] >= 0.95
        edited = [r.body.get("weight_blocks") for r in session.store.lineage("head")]
        assert edited.count([0]) == 4


def test_after_every_step_the_ledger_is_exact(fresh):
    for part in MIXTURE:
        apply_mixture(fresh, [part])
        assert is_exact(fresh), part


def test_a_run_that_is_resumed_comes_to_the_same_bits(fresh, mixed):
    """Opened anew before every part: neurons are made from a memory that is captured again."""
    path = fresh.store.path
    fresh.close()
    for part in MIXTURE:
        with open_session(path) as session:
            apply_mixture(session, [part])
    with open_session(mixed, writable=False) as whole, open_session(path) as resumed:
        assert [r.fingerprint for r in resumed.store.revisions()] == [
            r.fingerprint for r in whole.store.revisions()
        ]
        one, other = resumed.run_state.memory, whole.run_state.memory
        assert one.owners == other.owners
        assert torch.equal(one.edits, other.edits) and torch.equal(one.training, other.training)


def test_every_revision_can_be_gone_back_to_bit_for_bit(mixed):
    with open_session(mixed, writable=False) as session:
        revisions = list(session.store.revisions())
        for revision in (revisions[7], revisions[2], revisions[-1], revisions[5], revisions[0]):
            session.stand_at(revision)
            assert session.edited.fingerprint == revision.fingerprint
        assert all(made.is_same for made in rebuild(session, revisions))
    assert verify(mixed) == []


def test_a_rollback_takes_alphaedits_keys_along(fresh):
    apply(fresh, corrections(0, 4), "alphaedit")
    apply(fresh, corrections(4, 8), "alphaedit")
    assert len(fresh.edited.weight(0).keys) == 8
    fresh.rollback("head~1")
    assert len(fresh.edited.weight(0).keys) == 4
    (again,) = apply(fresh, corrections(4, 8), "alphaedit")
    assert again.revision.fingerprint == fresh.store.revision("@2").fingerprint


def test_the_history_says_what_was_edited_and_how(mixed):
    with open_session(mixed, writable=False) as session:
        store = session.store
        batch = next(r for r in store.revisions() if r.body.get("editor") == "memit")
        shown = details(store, batch)
        applied = [o for o in shown["outcomes"] if o["outcome"] == "applied"]
        assert applied and all(o["editor"] == "memit" for o in applied)
        assert all(o["steps"] > 0 and o["arrived"] for o in applied)
        between = difference(store, store.revision("@3"), store.head)
        assert len(between["added"]) == 19
        assert between["patch_bytes_added"] > 0


def test_neurons_that_a_batch_has_broken_are_mended(fresh):
    """A batch without regard to anything else moves the queries of the neurons before it."""
    apply(fresh, corrections(0, 6), "tpatcher", batch_size=1)
    reckless = {"memit": {"moment_weight": 1e-4, "drift_max": 100.0, "clamp_norm_factor": 4.0}}
    (batch,) = apply(fresh, corrections(6, 24), "memit", editors=reckless)
    raw = batch.measured.rates.ER
    assert raw is not None and raw < 1.0
    assert is_exact(fresh)
    (mending,) = apply(fresh, corrections(24, 25), "tpatcher", repair=True)
    repaired = [o for o in mending.outcomes if o.repair]
    assert repaired and all(o.outcome == "applied" for o in repaired)
    assert mending.measured.rates.ER > raw
    assert fresh.store.ledger(batch.revision.seq)["rates"]["ER"] == raw  # stays on record
    assert is_exact(fresh)


def test_auto_gives_to_tpatcher_what_has_no_subject(fresh):
    requests = corrections(0, 6)
    requests[2] = requests[2].model_copy(update={"subject": None})
    requests[4] = requests[4].model_copy(update={"subject": "Atlantis"})
    (step,) = apply(fresh, requests, "memit", "tpatcher")
    chosen = {o.id: o for o in step.outcomes}
    for i, request in enumerate(requests):
        outcome = chosen[request.id]
        assert outcome.outcome == "applied"
        assert outcome.editor == ("tpatcher" if i in (2, 4) else "memit")
    assert "without a subject" in chosen[requests[2].id].notes["passed_by"]["memit"]
    assert "Atlantis" in chosen[requests[4].id].notes["passed_by"]["memit"]
    assert "subject" in chosen[requests[0].id].notes["chosen_for"]
    assert len(step.revision.body["weight_blocks"]) == 1


@pytest.mark.parametrize("chain", [("memit",), ("tpatcher",), ("memit", "tpatcher")])
def test_probes_that_are_read_behind_an_edit_come_out_as_those_read_before_it(
    folder, tmp_path, monkeypatch, chain
):
    requests = corrections(0, 10)
    requests[2] = requests[2].model_copy(update={"subject": None})  # nothing for MEMIT
    seen = []
    for many in (1, len(requests) + 1):
        monkeypatch.setattr(probing, "MANY", many)
        shutil.copytree(folder / "store", tmp_path / str(many))
        with open_session(tmp_path / str(many)) as session:
            (step,) = apply(session, requests, *chain)
            assert is_exact(session)
            expected = [outcome.expected for outcome in step.outcomes]
            outcomes = session.run_state.ledger.outcomes()
            seen.append((expected, outcomes, step.measured, session.edited.fingerprint))
    assert len(seen[0][1]) > 4 * len(requests)  # of what is learned from, held out and near
    assert seen[0] == seen[1]


def drift_at_head(session: Session) -> float:
    """By keys that have the second moment of the statistics, one by one."""
    weight = session.edited.weight(0)
    moment = session.statistics.get(0).second_moment
    values, vectors = torch.linalg.eigh(moment)
    keys = vectors.T * values.clamp(min=0.0).sqrt()[:, None]
    moved, given = (keys @ w.double() for w in (weight.sum - weight.base, weight.base))
    return float(moved.norm() / given.norm())


def test_a_batch_that_would_move_the_matrix_too_far_is_halved_and_then_passed_on(fresh):
    """Small enough parts of it fit; what does not goes to the next editor, none is lost."""
    requests = corrections(0, 12)
    apply(fresh, requests, "memit", editors={"memit": {"drift_max": 100.0}})
    drift = drift_at_head(fresh)
    fresh.rollback("base")
    table = {"memit": {"drift_max": 0.6 * drift}}
    (step,) = apply(fresh, requests, "memit", "tpatcher", editors=table)
    by = [o.editor for o in step.outcomes]
    assert {o.outcome for o in step.outcomes} == {"applied"}
    assert 0 < by.count("memit") < 12 and by.count("tpatcher") == 12 - by.count("memit")
    passed = next(o for o in step.outcomes if o.editor == "tpatcher")
    assert "away from the base" in passed.notes["passed_by"]["memit"]
    assert drift_at_head(fresh) <= 0.6 * drift + 1e-4
    fresh.rollback("base")
    (refused,) = apply(fresh, requests, "memit", editors={"memit": {"drift_max": 1e-3}})
    assert {o.outcome for o in refused.outcomes} == {"failed"}
    assert refused.revision.patch is None
    assert all("away from the base" in str(o.reason) for o in refused.outcomes)


def test_an_editor_with_no_room_left_is_not_asked_for_each_request(fresh, monkeypatch):
    sizes: list[int] = []
    edit = Memit.edit

    def counted(self, edits, edit_context):
        sizes.append(len(edits))
        return edit(self, edits, edit_context)

    monkeypatch.setattr(Memit, "edit", counted)
    table = {"memit": {"drift_max": 1e-3}}
    (step,) = apply(fresh, corrections(0, 12), "memit", "tpatcher", editors=table)
    assert {o.editor for o in step.outcomes} == {"tpatcher"}
    assert sizes.count(1) == OVER_BUDGET_MAX
    assert all("away from the base" in o.notes["passed_by"]["memit"] for o in step.outcomes)


def test_an_editor_that_breaks_off_behind_a_weight_edit_leaves_all_as_it_was(fresh, monkeypatch):
    apply(fresh, corrections(0, 2), "tpatcher", batch_size=1)
    memory, fingerprint = fresh.run_state.memory, fresh.edited.fingerprint
    owners, edits, training = memory.owners, memory.edits.clone(), memory.training.clone()
    requests = corrections(2, 6)
    requests[1] = requests[1].model_copy(update={"subject": None})  # goes on to the next editor

    def fail(*_: object) -> None:
        raise RuntimeError("not now")

    with monkeypatch.context() as patched:
        patched.setattr("continual.editors.tpatcher.TPatcher.edit", fail)
        with pytest.raises(RuntimeError, match="not now"):
            apply(fresh, requests, "memit", "tpatcher")
    assert fresh.edited.fingerprint == fingerprint == fresh.store.head.fingerprint
    memory = fresh.run_state.memory
    assert memory.owners == owners
    assert torch.equal(memory.edits, edits) and torch.equal(memory.training, training)
    (step,) = apply(fresh, requests, "memit", "tpatcher")
    assert {o.outcome for o in step.outcomes} == {"applied"}
    assert is_exact(fresh)
