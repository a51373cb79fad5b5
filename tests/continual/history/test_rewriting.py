"""Rollback, revert, re-embed and repair: where the commit fails the model stands at head."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from continual.history.reembedding import reembed
from continual.history.repairing import give_up
from continual.requests import Request
from continual.session import Session
from store import StoreError
from store.errors import StoreFull
from tests.continual.conftest import reopened
from tests.continual.memory.conftest import reader  # noqa: F401
from tests.continual.memory.test_memory_history import Mirrored, apply
from tests.tiny_language import CAPITALS
from tests.tiny_memories import about

RECORDS = [about(20, CAPITALS[0]), about(21, CAPITALS[1])]


def give_up_the_first_step(session: Session) -> object:
    patch = session.store.revision("@1").patch
    assert patch is not None
    return give_up(session, [patch])


OPERATIONS: dict[str, Callable[[Session], object]] = {
    "rollback": lambda session: session.rollback("head~1"),
    "revert": lambda session: session.revert(Request.from_json(RECORDS[0]).id),
    "re-embed": reembed,
    "repair": give_up_the_first_step,
}


@pytest.fixture(params=OPERATIONS)
def operation(request):
    return request.param


@pytest.fixture
def changed(reader, operation, monkeypatch):  # noqa: F811
    """Two records in force and a neuron; what embedded the records is another only where they are
    embedded anew."""
    apply(reader, RECORDS, "serac", batch_size=1)
    apply(reader, [about(22)], "tpatcher")
    if operation == "re-embed":
        other = Mirrored(fingerprint="another")
        monkeypatch.setattr("continual.memory.recall.make_scope", lambda config: other)
    session = reopened(reader)
    yield session
    session.close()


def test_a_commit_that_fails_leaves_the_model_at_head(changed, monkeypatch, operation):
    head, length = changed.store.head, changed.store.length

    def refuse(draft: object) -> None:
        assert changed.edited.fingerprint != head.fingerprint
        raise StoreError("not now")

    with monkeypatch.context() as patched, pytest.raises(StoreError, match="not now"):
        patched.setattr(changed.store, "commit", refuse)
        OPERATIONS[operation](changed)
    assert changed.edited.fingerprint == head.fingerprint
    assert (changed.store.head_id, changed.store.length) == (head.id, length)
    OPERATIONS[operation](changed)  # nothing is in its way now
    assert changed.store.length == length + 1
    assert changed.edited.fingerprint == changed.store.head.fingerprint != head.fingerprint


def test_a_full_disk_closes_the_store_and_leaves_the_model_at_head(changed, monkeypatch, operation):
    head = changed.store.head
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 10}))
    with pytest.raises(StoreFull, match="10 are free"):
        OPERATIONS[operation](changed)
    assert changed.edited.fingerprint == head.fingerprint
    with pytest.raises(StoreError, match="closed"):
        changed.stand_at("head")


@pytest.mark.parametrize("operation", ["repair"], indirect=True)
def test_where_head_has_lost_its_patch_a_commit_that_fails_leaves_the_base(changed, monkeypatch):
    changed.stand_at("base")
    patch = changed.store.revision("@1").patch
    changed.store.blobs.path(patch.sha256).unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 10}))
    with pytest.raises(StoreFull):
        give_up(changed, [patch])
    assert changed.edited.fingerprint == changed.edited.base.fingerprint


def test_a_step_whose_commit_fails_leaves_the_model_at_head(knowing, monkeypatch):
    request = Request.from_json(about(22))
    head = knowing.store.head

    def refuse(draft: object) -> None:
        assert knowing.edited.fingerprint != head.fingerprint
        raise StoreError("not now")

    with monkeypatch.context() as patched, pytest.raises(StoreError, match="not now"):
        patched.setattr(knowing.store, "commit", refuse)
        list(knowing.apply_requests([request], knowing.settings()))
    assert knowing.edited.fingerprint == head.fingerprint
