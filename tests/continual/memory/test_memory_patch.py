"""Memory patches: put on and taken off exactly, and refused where they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from continual.base import load_base
from continual.effects.records import EmbeddedRecords, Reading, Record
from continual.errors import EditError
from continual.model import EditedModel
from continual.patches import pack, unpack
from continual.patches.memory import MemoryPatch

WIDTH = 8


def patch_of(*names: str, removed: tuple[str, ...] = (), seed: int = 0) -> MemoryPatch:
    vectors = torch.randn(len(names), WIDTH, generator=torch.Generator().manual_seed(seed))
    records = tuple(Record(n, f"the capital of {n} is", "Rome", None) for n in names)
    readings = tuple(Reading("serac", f"New Fact: {n}\n") for n in names)
    return MemoryPatch(EmbeddedRecords(records, vectors), readings, "encoder", removed)


@pytest.fixture
def edited(random_model: Path) -> EditedModel:
    return EditedModel(load_base(random_model))


def state(edited: EditedModel) -> tuple:
    bank = edited.memory
    return edited.fingerprint, bank.places(), bank.embeddings.tolist(), bank.active.tolist()


def test_a_patch_is_read_back_as_it_was_written():
    written = patch_of("a", "b", removed=("c",))
    (read,) = unpack(*pack([written]))
    assert read.meta() == written.meta()
    assert torch.equal(read.tensors()["embeddings"], written.tensors()["embeddings"])


def test_a_patch_that_only_removes_is_read_back_too():
    (read,) = unpack(*pack([MemoryPatch(removed=("a",))]))
    assert read.removed == ("a",) and len(read.records) == 0


def test_every_earlier_state_comes_back(edited: EditedModel):
    patches = [
        patch_of("a", "b", seed=1),
        patch_of("c", removed=("a",), seed=2),
        MemoryPatch(removed=("c",)),
        patch_of("a", "d", removed=("b",), seed=3),
    ]
    states = [state(edited)]
    for patch in patches:
        edited.put([patch])
        states.append(state(edited))
    assert [len(edited.memory), edited.memory.size] == [2, 4]
    for depth in (3, 1):
        edited.take_off(depth)
        assert state(edited) == states[depth]
        edited.put([patches[depth]])
        assert state(edited) == states[depth + 1]
    edited.take_off(0)
    assert state(edited) == states[0] and edited.fingerprint == edited.base.fingerprint


def test_what_is_remembered_is_in_the_fingerprint(edited: EditedModel):
    prints = set()
    for patch in (patch_of("a"), patch_of("b"), patch_of("a", seed=1)):
        edited.put([patch])
        prints.add(edited.fingerprint)
        edited.take_off(0)
    assert len(prints) == 3


def test_matrices_are_as_they_were(edited: EditedModel):
    before = edited.rows_state
    edited.put([patch_of("a")])
    assert edited.rows_state == before


def test_embeddings_of_another_width_are_refused_and_change_nothing(edited):
    edited.put([patch_of("a")])
    before = state(edited)
    wide = EmbeddedRecords((Record("z", "?", "!"),), torch.zeros(1, WIDTH + 1))
    with pytest.raises(EditError, match="another encoder"):
        edited.put([MemoryPatch(wide, (Reading("ike", ""),), removed=("a",))])
    assert state(edited) == before


def test_a_record_takes_the_place_of_an_earlier_one_and_gives_it_back(edited):
    edited.put([patch_of("a", "b", seed=1)])
    before = state(edited)
    edited.put([patch_of("a", seed=2)])
    assert edited.memory.places() == [1, 2]
    edited.take_off(1)
    assert state(edited) == before


def test_removing_what_is_not_there_changes_no_record(edited):
    edited.put([patch_of("a")])
    edited.put([MemoryPatch(removed=("z", "a"))])
    assert len(edited.memory) == 0
    edited.take_off(1)
    assert edited.memory.places() == [0]


# -- whose it is, and what many come to


def test_a_patch_without_a_request_is_without_its_records_and_what_went_for_it():
    patch = replace(patch_of("a", "b", removed=("x", "y")), removed_for=("a", "b"))
    assert patch.owners == ("a", "b", "a", "b") and patch.rows == 4
    left = patch.without("a")
    assert left is not None and left.owners == ("b", "b") and left.removed == ("y",)
    assert torch.equal(left.records.embeddings, patch.records.embeddings[1:])
    assert left.without("b") is None
    (read,) = unpack(*pack([patch]))
    assert read.owners == patch.owners


def test_owners_that_do_not_fit_are_refused():
    for owners in (("a",), ("b", "x")):
        with pytest.raises(EditError, match="owne"):
            patch_of("a", removed=("x",)).owned_by(owners)


def visible(edited: EditedModel) -> tuple:
    bank = edited.memory
    places = bank.places()
    named = [(bank.records[i], bank.readings[i], bank._scopes[i]) for i in places]
    return named, bank.embeddings[places].tolist() if places else []


def test_joined_patches_leave_the_memory_as_they_do_one_by_one(edited):
    other = replace(patch_of("f", "a", removed=("c",), seed=5), scope="another")
    patches = [
        patch_of("a", "b", seed=1),
        patch_of("c", "d", removed=("a",), seed=2),
        patch_of("e", "b", seed=3),
        other,
        MemoryPatch(removed=("d", "early")),
    ]
    edited.put([patch_of("early", "late", seed=9)])
    for patch in patches:
        edited.put([patch])
    wanted = visible(edited)
    edited.take_off(1)
    joined = MemoryPatch.joined(patches)
    assert len(joined) == 3
    edited.put(joined)
    assert visible(edited) == wanted
    assert len(wanted[0]) == 5


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (EmbeddedRecords((Record("a", "?", "!"),), torch.zeros(2, WIDTH)), "does not fit together"),
        (EmbeddedRecords((Record("a", "?", "!"),), torch.full((1, WIDTH), torch.nan)), "finite"),
        (EmbeddedRecords((Record("a", "?", "!"),) * 2, torch.zeros(2, WIDTH)), "two records"),
    ],
)
def test_an_unsound_patch_is_refused(records, said):
    readings = (Reading("serac", ""),) * len(records)
    with pytest.raises(EditError, match=said):
        MemoryPatch(records, readings, "encoder").check()


def test_a_record_with_a_least_score_is_kept_under_a_kind_of_its_own():
    """Versions that know nothing of least scores would answer by it too often: they refuse it."""
    wide, narrow = Record("a", "?", "!"), Record("b", "?", "!", score_min=0.9)
    readings = (Reading("serac", ""),) * 2
    patch = MemoryPatch(EmbeddedRecords((wide, narrow), torch.eye(2, WIDTH)), readings, "encoder")
    tensors, meta = pack([patch])
    assert meta["parts"][0]["kind"] == "narrow memory"
    assert unpack(tensors, json.loads(json.dumps(meta))) == (patch,)
    _, before = pack([replace(patch, records=EmbeddedRecords((wide, wide), torch.eye(2, WIDTH)))])
    assert before["parts"][0]["kind"] == "memory"
    assert "score_min" not in str(before)


def test_a_least_score_beyond_one_is_refused():
    records = EmbeddedRecords((Record("a", "?", "!", score_min=1.5),), torch.eye(1, WIDTH))
    with pytest.raises(EditError, match="least score"):
        MemoryPatch(records, (Reading("serac", ""),), "encoder").check()


def test_a_file_that_is_not_ours_is_refused():
    with pytest.raises(EditError, match="not one of ours"):
        MemoryPatch.from_tensors({}, {"records": [], "scope": "", "removed": []})
