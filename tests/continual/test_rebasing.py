"""The corrections in force move to another base model, and it is said what became of each."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from continual.errors import CeditError
from continual.history.replaying import verify
from continual.rebasing import groups, rebase, report
from continual.requests import Request
from continual.session import Session, open_session
from store import Store
from tests import tiny_language as language
from tests.continual.conftest import answers
from tests.tiny_language import CAPITALS, capital, correction


@pytest.fixture
def source(knowing: Session) -> Path:
    """Four corrections in force: one was superseded, one reverted, one rolled back."""
    requests = [Request.from_json(correction(c)) for c in range(20, 25)]
    list(knowing.apply_requests(requests, knowing.settings()))
    changed = Request.from_json(correction(21, CAPITALS[1]))
    list(knowing.apply_requests([changed], knowing.settings()))
    knowing.revert(requests[3].id)
    list(knowing.apply_requests([Request.from_json(correction(30))], knowing.settings()))
    knowing.rollback("head~1")
    knowing.close()
    return knowing.store.path


IN_FORCE = [correction(20), correction(22), correction(24), correction(21, CAPITALS[1])]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: it needs every correction."""
    return language.save_decoder(tmp_path_factory.mktemp("models") / "other")


def test_what_is_in_force_is_applied_and_nothing_else(source, other_model, tmp_path):
    with Store.open(source) as old:
        steps = list(rebase(old, tmp_path / "new", str(other_model)))
        assert len(steps) == 4
        with Store.open(tmp_path / "new") as new:
            found = report(old, new)
            assert len(found.needed) == 4 and not found.failed and not found.right_already
            assert new.base.body["probes"] == old.base.body["probes"]
            assert new.settings["task"] == old.settings["task"]
    with open_session(tmp_path / "new", writable=False) as session:
        assert answers(session, IN_FORCE) == [True] * 4
        assert list(session.run_state.retention.requests) == list(found.needed)
    assert verify(tmp_path / "new") == []


def test_what_the_new_model_knows_is_not_edited(other_model, knowing_model, tmp_path, made):
    session = made(other_model, "old")
    known, unknown = (Request.from_json(correction(c, t)) for c, t in ((5, capital(5)), (6, None)))
    list(session.apply_requests([known, unknown], session.settings(force=True)))
    session.close()
    with Store.open(session.store.path) as old:
        list(rebase(old, tmp_path / "new", str(knowing_model)))
        with Store.open(tmp_path / "new") as new:
            found = report(old, new)
    assert (found.right_already, found.needed) == ((known.id,), (unknown.id,))


def test_a_run_that_broke_off_goes_on_and_comes_to_the_same(source, other_model, tmp_path):
    with Store.open(source) as old:
        list(rebase(old, tmp_path / "whole", str(other_model)))
        for count in (1, 2, 9):
            steps = rebase(old, tmp_path / "broken", str(other_model))
            taken = list(islice(steps, count))
            steps.close()
        assert len(taken) == 1
        assert list(rebase(old, tmp_path / "broken", str(other_model))) == []
    with Store.open(tmp_path / "whole") as whole, Store.open(tmp_path / "broken") as broken:
        assert whole.head_id == broken.head_id


def test_batches_stay_as_large_as_they_were(knowing):
    for size, countries in ((3, range(20, 26)), (1, range(26, 28))):
        requests = [Request.from_json(correction(c)) for c in countries]
        list(knowing.apply_requests(requests, knowing.settings(batch_size=size)))
    assert [len(group.requests) for group in groups(knowing.store)] == [3, 3, 1, 1]


def test_another_store_is_not_written_to(source, other_model, knowing_model, made, tmp_path):
    made(knowing_model, "taken").close()
    with Store.open(source) as old, pytest.raises(CeditError, match="choose another folder"):
        list(rebase(old, tmp_path / "taken", str(other_model)))
    with Store.open(tmp_path / "taken") as taken:
        assert taken.length == 1


def test_a_rebased_store_joins_prompts_and_answers_as_the_old_one(
    other_model, knowing_model, tmp_path, made
):
    session = made(other_model, "old", task={"joining": "spaced"})
    session.apply([correction(6)])
    session.close()
    with Store.open(session.store.path) as old:
        list(rebase(old, tmp_path / "new", str(knowing_model)))
        with Store.open(tmp_path / "new") as new:
            assert new.settings["task"] == old.settings["task"]
            assert new.settings["task"]["joining"] == "spaced"
