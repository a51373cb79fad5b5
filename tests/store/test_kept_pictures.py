"""Pictures stand beside the patches: named by revisions, read back whole, never lost quietly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from store import Draft, Store, config, digest_of, gc, repair
from store.archive import export, restore
from store.check import verify
from store.errors import IntegrityError

META = {"kind": "picture"}


def picture(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"pixels": torch.randint(256, (4, 5, 3), generator=generator).to(torch.uint8)}


def show(store: Store, *pictures: dict[str, Tensor]) -> list[str]:
    digests = [store.keep_picture(tensors, META) for tensors in pictures]
    store.commit(Draft("edit", store.head_id, "f1", {"requests": []}, pictures=digests))
    return digests


def test_a_picture_is_kept_by_the_digest_of_its_content_and_read_back(store):
    (digest,) = show(store, picture(1))
    assert digest == digest_of(picture(1), META)
    assert torch.equal(store.picture(digest)["pixels"], picture(1)["pixels"])
    assert store.pictures_from(digest[:12]) == [digest]
    assert [ref.sha256 for ref in store.head.pictures] == [digest]
    assert verify(store) == []


def test_a_store_says_a_newer_format_from_its_first_picture_on(store, path):
    assert config.found_format(path) == config.FORMAT
    store.keep_picture(picture(1), META)
    assert config.found_format(path) == config.FORMAT
    show(store, picture(1))
    assert config.found_format(path) == config.WITH_PICTURES
    store.close()
    with Store.open(path, writable=True) as again:
        again.record_queue({"a": {"b": 1}})
        show(again, picture(2))
    assert config.found_format(path) == config.WITH_PICTURES


def test_a_revision_without_pictures_has_the_record_that_it_always_had(store):
    show(store)
    payload = store.journal.get("revisions", (1).to_bytes(8, "big"))
    assert payload is not None and b"pictures" not in payload


def test_a_base_can_show_pictures(path):
    settings = {"model": {"path": "m"}}
    with Store.init(path, settings, {"model": "m"}, "f0", [(picture(3), META)]) as store:
        (ref,) = store.base.pictures
        assert torch.equal(store.picture(ref.sha256)["pixels"], picture(3)["pixels"])
        assert verify(store) == []


def test_garbage_is_what_no_revision_shows(store):
    kept, loose = picture(1), picture(2)
    show(store, kept)
    digest = store.keep_picture(loose, META)
    (garbage,) = gc.find(store)
    assert garbage.path == store.pictures.path(digest)
    gc.collect(store, [garbage])
    assert list(store.pictures.digests()) == [digest_of(kept, META)]


def test_an_archive_takes_pictures_along(store, tmp_path: Path):
    (digest,) = show(store, picture(1))
    store.keep_picture(picture(2), META)  # shown by nothing
    assert export(store, tmp_path / "history.tar").pictures == 1
    restored = restore(tmp_path / "history.tar", tmp_path / "copy", model="elsewhere")
    assert restored.pictures == 1
    assert config.found_format(tmp_path / "copy") == config.WITH_PICTURES
    with Store.open(tmp_path / "copy") as copy:
        assert list(copy.pictures.digests()) == [digest]
        assert copy.head_id == store.head_id


def test_an_archive_takes_the_pictures_of_the_queue_along(store, tmp_path: Path):
    waiting, never_kept = store.keep_picture(picture(1), META), digest_of(picture(2), META)
    prompts = [f"<|picture:{name}|> What is it?" for name in (waiting, never_kept)]
    store.record_queue({"item/1": {"prompts": prompts}})
    assert export(store, tmp_path / "history.tar").pictures == 1
    restore(tmp_path / "history.tar", tmp_path / "copy", model="elsewhere")
    with Store.open(tmp_path / "copy") as copy:
        assert list(copy.pictures.digests()) == [waiting]
        assert copy.queue_entry("item/1") == store.queue_entry("item/1")
        assert verify(copy) == []


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_lost_picture_is_named_and_the_same_one_given_again_heals_it(store, path, how):
    (digest,) = show(store, picture(1))
    file = store.pictures.path(digest)
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(IntegrityError, match="pictures/"):
        store.picture(digest)
    (problem,) = verify(store)
    assert problem.object == store.pictures.label(digest) and not problem.harmless
    plan = repair.plan(store)
    assert any("picture" in loss for loss in plan.loses)
    repair.carry_out(store, plan)
    assert not file.exists()
    with Store.open(path, writable=True) as again:
        again.keep_picture(picture(1), META)
        assert verify(again) == []
