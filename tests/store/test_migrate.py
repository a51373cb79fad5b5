"""Stores of every format that was ever written are read, or refused by name."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from store import Draft, Store, config
from store.check import verify, verify_path
from store.errors import FormatVersionError, IntegrityError, NoStore, StoreFull, StoreLocked
from store.lock import WriterLock
from store.migrate import STEPS, Upgrade, migrate

GOLDEN = Path(__file__).parent / "golden"
FORMATS = range(1, config.FORMAT + 1)


def golden(number: int, path: Path) -> Path:
    """The golden store of a format."""
    with tarfile.open(GOLDEN / f"format-{number}.tar.gz") as tar:
        tar.extractall(path)
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return golden(1, tmp_path / "store")


def test_there_is_a_golden_store_of_every_format():
    every = {*FORMATS, *config.OPENED}
    assert {f.name for f in GOLDEN.iterdir()} == {f"format-{n}.tar.gz" for n in every}


def test_a_store_with_pictures_is_used_as_it_is(tmp_path):
    path = golden(config.WITH_PICTURES, tmp_path / "store")
    before = (path / config.FILE_NAME).read_bytes()
    assert migrate(path).changes == ()
    with Store.open(path, writable=True) as store:
        assert [p for p in verify(store) if not p.harmless] == []
        (ref,) = store.head.pictures
        assert store.request(f"{9:032x}")["prompt"] == f"<|picture:{ref.sha256}|>Whose?"
        pixels = store.picture(ref.sha256)["pixels"]
        assert pixels.flatten().tolist() == list(range(60))
        store.record_queue({"item/0002": {"state": "pending"}})
    assert (path / config.FILE_NAME).read_bytes() == before


@pytest.mark.parametrize("number", FORMATS)
def test_a_store_of_any_format_has_all_that_was_put_there(number, tmp_path):
    path = golden(number, tmp_path / "store")
    done = migrate(path)
    assert (done.before, done.after) == (number, config.FORMAT)
    with Store.open(path, writable=True) as store:
        assert [p for p in verify(store) if not p.harmless] == []
        operations = [r.operation for r in store.revisions()]
        newer = ["revert", "watch"][: number - 1]  # format 4 brings no revision
        assert operations == ["base", "edit", "edit", "edit", "rollback", *newer]
        assert store.head.fingerprint == ("f0" if newer else "f1")
        assert store.revision("release").fingerprint == "f2"
        assert [layer.patch is None for layer in store.layers("head")][1:2] == [bool(newer)]
        watched = store.head.body.get("watch", {})
        assert bool(watched.get("passages")) == (number >= 3)
        assert store.streams() == {"news.jsonl": {"position": 3, "rolling": f"{3:032x}"}}
        queue = list(store.queue_entries())
        assert queue == ([("item/0001", {"state": "pending"})] if number >= 4 else [])
        assert store.ledger(2)["rates"] == {"SR": 1.0}
        assert store.requests_about("subject 1") == [f"{1:032x}", f"{3:032x}"]
        assert float(store.tensors("@3")[0]["0.keys"][0, 0]) == 3.0
        assert [line["line"] for line in store.quarantined()] == ["bad"]
        assert store.cached("statistics/block-0").meta == {"count": 2}
        assert store.settings["model"] == {"path": "atlas", "fingerprint": "f0"}
        ancestor = store.lineage("head")[1]
        store.commit(Draft("revert", store.head_id, "f9", replaces={ancestor.id: None}))
        assert store.layers("head")[1].patch is None


@pytest.mark.parametrize("number", FORMATS)
def test_ids_are_the_same_in_every_format(number, tmp_path):
    path = golden(number, tmp_path / "store")
    migrate(path)
    with Store.open(path) as store:
        ids = [revision.id for revision in store.revisions()][:5]
    newest = golden(config.FORMAT, tmp_path / "newest")
    with Store.open(newest) as store:
        assert [revision.id for revision in store.revisions()][:5] == ids


def test_an_older_store_is_refused_until_it_is_migrated(old):
    for writable in (False, True):
        with pytest.raises(FormatVersionError, match="cedit migrate") as caught:
            Store.open(old, writable=writable)
        assert caught.value.exit_code == 12
    migrate(old)
    Store.open(old, writable=True).close()


def test_a_store_of_format_3_is_used_as_it_is_until_it_has_a_queue(tmp_path):
    path = golden(3, tmp_path / "store")
    with Store.open(path, writable=True) as store:
        store.tag("used", "@1")
        assert config.found_format(path) == 3
        store.record_queue({"item/1": {"state": "pending"}})
        assert config.found_format(path) == 4
    with Store.open(path) as store:
        assert store.queue_entry("item/1") == {"state": "pending"}
        assert [p for p in verify(store) if not p.harmless] == []


def test_what_was_there_is_kept_and_what_people_wrote_stays(old):
    toml = old / "cedit.toml"
    toml.write_text("# ours\n" + toml.read_text() + "\n# format = 1 it was\n")
    before = toml.read_bytes(), (old / "journal" / "data.mdb").read_bytes()
    done = migrate(old)
    assert done.backup == old / "backup" / "format-1"
    assert (done.backup / "cedit.toml").read_bytes() == before[0]
    assert (done.backup / "data.mdb").read_bytes() == before[1]
    assert toml.read_text().startswith(f"# ours\nformat = {config.FORMAT}\n")
    assert "\n# format = 1 it was\n# sha256 " in toml.read_text()
    assert "cedit.toml" not in {problem.object for problem in verify_path(old)}


def test_migrating_again_does_nothing(old):
    migrate(old)
    before = {p: p.read_bytes() for p in old.rglob("*") if p.is_file() and p.name != "lock"}
    done = migrate(old)
    assert (done.changes, done.backup) == ((), None)
    assert before == {p: p.read_bytes() for p in old.rglob("*") if p.is_file() and p.name != "lock"}


@pytest.mark.parametrize("said", ["99", "0", "-1"])
def test_an_unknown_format_is_refused_by_name(old, said):
    toml = old / "cedit.toml"
    toml.write_text(toml.read_text().replace("format = 1", f"format = {said}"))
    for use in (migrate, Store.open):
        with pytest.raises(FormatVersionError, match=f"format = {said}") as caught:
            use(old)
        assert "newer one" in str(caught.value)


@pytest.mark.parametrize("said", ['"1"', "1.5", "true", "[1]"])
def test_a_format_that_is_no_number_is_damage(old, said):
    toml = old / "cedit.toml"
    toml.write_text(toml.read_text().replace("format = 1", f"format = {said}"))
    with pytest.raises(IntegrityError, match="no number"):
        migrate(old)


def test_no_store_a_writer_at_work_and_a_full_disk(old, tmp_path, monkeypatch):
    with pytest.raises(NoStore):
        migrate(tmp_path / "nowhere")
    lock = WriterLock.acquire(old / "lock")
    with pytest.raises(StoreLocked):
        migrate(old)
    lock.release()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000}))
    with pytest.raises(StoreFull, match="1,000 are free"):
        migrate(old)
    assert config.found_format(old) == 1


def test_a_step_that_breaks_off_is_taken_again(old, monkeypatch):
    """The number is written last; the steps before it stay done."""
    taken: list[int] = []

    def break_off(_: Path) -> None:
        if taken.count(3) < 1:
            taken.append(3)
            raise RuntimeError("killed, say")

    monkeypatch.setattr(config, "FORMAT", 3)
    monkeypatch.setitem(STEPS, 2, Upgrade("two", lambda _: taken.append(2)))
    monkeypatch.setitem(STEPS, 3, Upgrade("three", break_off))
    with pytest.raises(RuntimeError):
        migrate(old)
    assert config.found_format(old) == 2
    assert migrate(old).changes == ("three",)
    assert (config.found_format(old), taken) == (3, [2, 3])
