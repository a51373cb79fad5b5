"""What a caller of Store may rely on."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from store import Draft, Revision, Store, config, durable
from store.errors import (
    AmbiguousRevision,
    NoStore,
    StorageFault,
    StoreError,
    StoreExists,
    StoreLocked,
    UnknownRevision,
)
from store.journal import Put
from store.revisions import payload_of

HOLD = """
import sys, time
from pathlib import Path
from store import Store
with Store.open(Path(sys.argv[1]), writable=True):
    print("open", flush=True)
    time.sleep(60)
"""


# -- opening


def test_a_new_store_stands_at_its_base(store, path):
    assert store.head == store.base
    assert store.base.operation == "base"
    assert store.base.body == {"model": "m"}
    assert store.length == 1
    assert store.settings == {"model": {"path": "m"}}
    assert store.cache == path / "cache"


def test_what_was_committed_is_there_when_opened_again(store, path, grow):
    revisions = grow(store, 3)
    store.close()
    with Store.open(path) as again:
        assert list(again.revisions()) == [again.base, *revisions]
        assert [r.body for r in again.revisions(1)] == [r.body for r in revisions]
        assert again.head == revisions[-1]


def test_a_store_is_not_made_where_one_is(store, path):
    with pytest.raises(StoreExists):
        Store.init(path, {}, {}, "f0")


def test_a_store_is_not_made_among_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StoreExists, match=r"thesis\.tex"):
        Store.init(tmp_path, {}, {}, "f0")


@pytest.mark.parametrize("stage", ["move_durably", "write_durably"])
def test_an_interrupted_init_can_be_repeated(path, monkeypatch, stage):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(durable, stage, interrupted)
        Store.init(path, {}, {"try": 1}, "f0")
    with pytest.raises(NoStore):
        Store.open(path)
    with Store.init(path, {}, {"try": 2}, "f0") as store:
        assert store.base.body == {"try": 2}
    assert not list(path.glob(".tmp-*"))


def test_init_spares_a_history_that_lost_its_toml(store, path, grow):
    grow(store, 2)
    store.close()
    (path / config.FILE_NAME).unlink()
    with pytest.raises(StoreExists, match="history of 3"):
        Store.init(path, {}, {}, "f0")
    assert (path / "journal" / "data.mdb").exists()


def test_a_store_is_found_upward_by_environment_or_by_name(store, path, tmp_path, monkeypatch):
    monkeypatch.delenv("CEDIT_STORE", raising=False)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert Store.find(below) == path
    monkeypatch.chdir(below)
    assert Store.find() == path
    assert Store.find(Path("/"), str(path)) == path
    monkeypatch.setenv("CEDIT_STORE", str(path))
    assert Store.find(Path("/")) == path
    with pytest.raises(NoStore, match="cedit init"):
        Store.find(below, "elsewhere")


def test_a_closed_store_says_so(store):
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        _ = store.head


def test_a_store_opened_for_reading_is_not_written(store, path):
    store.close()
    with Store.open(path) as reader, pytest.raises(StoreError, match="reading only"):
        reader.tag("v1", "head")


def test_log_needs_no_torch(path, store, python):
    store.close()
    child = python(
        "import sys; from pathlib import Path; from store import Store\n"
        "list(Store.open(Path(sys.argv[1])).revisions()); assert 'torch' not in sys.modules",
        path,
    )
    assert child.wait() == 0


# -- committing


def test_a_commit_carries_requests_subjects_and_streams(store, grow):
    grow(store, 4)
    assert store.request("request-3") == {"prompt": "prompt-3"}
    assert store.requests_about("subject-1") == ["request-1", "request-3"]
    assert store.requests_about("nobody") == []
    assert store.stream("news") == {"position": 4}
    assert store.streams() == {"news": {"position": 4}}
    with pytest.raises(StoreError, match="no request"):
        store.request("request-9")


def test_tensors_come_back_with_their_meta(store, grow):
    import torch

    keys = torch.arange(6.0).reshape(2, 3)
    (revision,) = grow(store, 1, tensors={"keys": keys.T}, patch_meta={"kind": "neuron"})
    tensors, meta = store.tensors(revision)
    assert torch.equal(tensors["keys"], keys.T)
    assert meta == {"kind": "neuron"}
    assert store.tensors("base") is None


def test_a_patch_that_was_written_ahead_is_the_drafts(store):
    written = store.write_ahead({"a": torch.ones(2)}, {"kind": "x"})
    draft = Draft("edit", store.head_id, "f1", written=written, ledger={"rates": {}})
    revision = store.commit(draft)
    tensors, meta = store.tensors("head")
    assert torch.equal(tensors["a"], torch.ones(2))
    assert meta == {"kind": "x"}
    assert revision.patch == written.result()
    assert store.ledger(revision.seq) == {"rates": {}}


def test_what_went_wrong_ahead_is_told_by_the_commit_and_nothing_is_written(store):
    written = store.write_ahead({"a": torch.tensor([float("nan")])}, {})
    with pytest.raises(StoreError, match="NaN"):
        store.commit(Draft("edit", store.head_id, "f1", written=written, ledger={"rates": {}}))
    assert store.length == 1
    assert store.ledger(1) is None


def test_a_disk_that_fails_ahead_closes_the_store(store, monkeypatch):
    def fail(path: Path, data: bytes) -> None:
        raise StorageFault(path, "the disk failed")

    monkeypatch.setattr(durable, "place_durably", fail)
    written = store.write_ahead({"a": torch.ones(2)}, {})
    with pytest.raises(StorageFault):
        store.commit(Draft("edit", store.head_id, "f1", written=written))
    with pytest.raises(StoreError, match="closed"):
        store.length  # noqa: B018


def test_a_stream_set_to_none_is_forgotten(store, grow):
    grow(store, 1)
    store.commit(Draft("edit", store.head.id, "f", streams={"news": None}))
    assert store.stream("news") is None


def test_the_same_request_may_come_again_but_not_with_other_content(store):
    for _ in range(2):
        requests = {"a": {"prompt": "p"}}
        store.commit(Draft("edit", store.head.id, "f", requests=requests, subjects={"a": "s"}))
    assert store.requests_about("s") == ["a"]
    with pytest.raises(StoreError, match="other content"):
        store.commit(Draft("edit", store.head.id, "f", requests={"a": {"prompt": "q"}}))
    assert store.length == 3


@pytest.mark.parametrize(
    "draft",
    [
        Draft("edit", "0" * 64, "f"),
        Draft("edit", None, "f"),
        Draft("edit", "", "f", head="0" * 64),
        Draft("edit", "", "f", subjects={"a": "s"}),
        Draft("edit", "", "f", body={"rate": float("nan")}),
        Draft("edit", "", "f", streams={"news": {"raw": "\ud800"}}),
    ],
)
def test_a_draft_that_does_not_fit_changes_nothing(store, draft):
    parent = store.head.id if draft.parent == "" else draft.parent
    misfit = Draft(**{**vars(draft), "parent": parent})
    with pytest.raises(StoreError):
        store.commit(misfit)
    assert store.length == 1
    assert store.head == store.base


def test_rollback_moves_head_and_leaves_a_record(store, grow):
    first, second, third = grow(store, 3)
    record = store.commit(
        Draft("rollback", first.id, first.fingerprint, {"target": first.id}, head=first.id)
    )
    assert store.head == first
    assert store.lineage("head") == [store.base, first]
    (fifth,) = grow(store, 1)
    assert fifth.parent == first.id
    assert fifth.previous == record.id
    assert store.lineage("head") == [store.base, first, fifth]
    assert list(store.revisions()) == [store.base, first, second, third, record, fifth]
    assert store.between(third, fifth) == [fifth]
    assert store.between("base", "@3") == [first, second, third]


def test_a_ledger_record_is_replaced_by_a_later_one(store, grow):
    grow(store, 1)
    assert store.ledger(1) is None
    store.record_ledger(1, {"SR": 0.5})
    store.record_ledger(1, {"SR": 1.0})
    assert store.ledger(1) == {"SR": 1.0}
    with pytest.raises(StoreError):
        store.record_ledger(2, {})


def test_ids_are_digests_of_content(store, grow, tmp_path):
    (revision,) = grow(store, 1)
    with Store.init(tmp_path / "twin", {"model": {"path": "m"}}, {"model": "m"}, "f0") as twin:
        assert grow(twin, 1) == [revision]


# -- names


def test_revisions_go_by_many_names(store, grow):
    revisions = grow(store, 5)
    store.tag("v1.0", "head~2")
    assert store.revision("head~2") == revisions[2]
    assert store.revision("HEAD~~") == revisions[2]
    assert store.revision("v1.0") == revisions[2]
    assert store.revision("v1.0~3") == store.base == store.revision("base")
    assert store.revision("@4") == revisions[3]
    assert store.revision(revisions[4].id[:10].upper()) == revisions[4]
    assert store.tags() == {"v1.0": revisions[2].id}
    store.tag("v1.0", "head")
    assert store.tags() == {"v1.0": revisions[4].id}


@pytest.mark.parametrize("name", ["head~9", "@9", "nobody", "", "~1", "abc", "head~x", "f" * 64])
def test_a_name_that_nothing_goes_by_is_unknown(store, name):
    with pytest.raises(UnknownRevision) as caught:
        store.revision(name)
    assert caught.value.exit_code == 2


def test_a_prefix_of_several_ids_names_them(store, grow):
    ids: dict[str, str] = {}
    for _ in range(3000):  # two of that many ids share four digits, all but surely
        (revision,) = grow(store, 1)
        other = ids.setdefault(revision.id[:4], revision.id)
        if other != revision.id:
            break
    with pytest.raises(AmbiguousRevision) as caught:
        store.revision(revision.id[:4])
    assert set(caught.value.candidates) == {other, revision.id}


def test_lineage_reads_each_of_ten_thousand_once(store, monkeypatch):
    changes: list[Put] = []
    previous = store.base
    for seq in range(1, 10_001):
        draft = Draft("edit", previous.id, f"f{seq}", {"requests": [{"id": f"r{seq}"}]})
        payload = payload_of(draft, seq, previous.id, None)
        previous = Revision.from_payload(payload)
        changes += store.history.changes(draft, previous, payload)
    store.journal.write(changes)
    read: list[Revision] = []
    build = Revision.from_payload
    monkeypatch.setattr(Revision, "from_payload", lambda raw: read.append(build(raw)) or read[-1])
    assert len(store.lineage("head")) == 10_001
    assert len(read) <= 10_003


# -- several at once


def test_a_second_writer_is_told_who_holds_the_lock(store, path, python):
    store.close()
    child = python(HOLD, path)
    assert child.stdout.readline() == b"open\n"
    with pytest.raises(StoreLocked) as caught:
        Store.open(path, writable=True)
    assert caught.value.pid == child.pid
    assert str(child.pid) in str(caught.value)
    assert caught.value.exit_code == 11
    child.kill()
    child.wait()
    Store.open(path, writable=True).close()


def test_no_writer_is_told_the_name_of_one_that_has_ended(store, path, python):
    store.close()
    assert (path / "lock").read_bytes() == b""
    child = python(HOLD, path)
    assert child.stdout.readline() == b"open\n"
    left = (path / "lock").read_bytes()
    child.kill()
    child.wait()
    assert (path / "lock").read_bytes() == left  # nobody was there to wipe it
    with (path / "lock").open("rb") as taken_unsigned:
        fcntl.flock(taken_unsigned, fcntl.LOCK_EX)
        with pytest.raises(StoreLocked) as caught:
            Store.open(path, writable=True)
    assert caught.value.pid is None


def test_a_reader_follows_a_writer_that_grows_the_map(path, store, python):
    store.close()
    reader = Store.open(path)
    child = python(
        "import sys; from pathlib import Path; from store import Store, Draft\n"
        "with Store(Path(sys.argv[1]), True, 1 << 16) as store:\n"
        "    for n in range(40):\n"
        "        store.commit(Draft('edit', store.head.id, 'f', {'text': 'x' * 50_000}))\n",
        path,
    )
    assert child.wait() == 0
    assert reader.length == 41
    assert len(reader.head.body["text"]) == 50_000
    reader.close()


def test_the_map_grows_as_it_must(path, store, grow):
    store.close()
    with Store(path, writable=True, map_size_bytes=1 << 16) as tiny:
        for n in range(30):
            body = {"text": "x" * 20_000, "n": n}
            tiny.commit(Draft("edit", tiny.head.id, "f", body))
        assert tiny.journal._live().info()["map_size"] > 1 << 16
        assert [r.seq for r in tiny.revisions()] == list(range(31))


def test_threads_may_read_while_one_writes(path, store):
    store.close()
    faults: list[BaseException] = []
    done = threading.Event()

    def read(shared: Store) -> None:
        try:
            while not done.is_set():
                known = shared.head.seq
                assert [r.seq for r in shared.revisions()][-1] >= known
        except BaseException as fault:
            faults.append(fault)

    with Store(path, writable=True, map_size_bytes=1 << 16) as shared:
        threads = [threading.Thread(target=read, args=(shared,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(30):
            shared.commit(Draft("edit", shared.head.id, "f", {"text": "x" * 9000}))
        done.set()
        for thread in threads:
            thread.join()
    assert not faults


def test_a_forked_child_is_told_to_open_its_own(path, store, grow):
    grow(store, 1)
    pid = os.fork()
    if pid == 0:
        os._exit(_in_the_child(store, path))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    grow(store, 1)
    assert store.length == 3


def _in_the_child(store: Store, path: Path) -> int:
    try:
        with pytest.raises(StoreError, match="forked"):
            _ = store.head
        store.close()
        with Store.open(path) as own:
            assert own.length == 2
        with pytest.raises(StoreLocked):
            Store.open(path, writable=True)
    except BaseException:
        return 1
    return 0


def test_one_process_opens_a_store_once(store, path):
    with pytest.raises(StoreError, match="already open in this process"):
        Store.open(path)


def _unshare_works() -> bool:
    command = ["unshare", "-rm", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(command, check=False).returncode == 0


@pytest.mark.skipif(not _unshare_works(), reason="needs user and mount namespaces")
def test_a_read_only_folder_can_be_read(path, store, grow, python):
    grow(store, 2)
    store.close()
    mount = f'mount --bind {path} {path} && mount -o remount,ro,bind {path} && exec "$@"'
    child = python(
        "import sys; from pathlib import Path; from store import Store, StoreError\n"
        "path = Path(sys.argv[1])\n"
        "with Store.open(path) as store: print(store.head.seq)\n"
        "try: Store.open(path, writable=True)\n"
        "except StoreError as error: print(type(error).__name__, error)\n",
        path,
        under=["unshare", "-rm", "sh", "-c", mount, "sh"],
    )
    out, err = child.communicate()
    assert out.startswith(b"2\nStoreError"), err
    assert b"permissions" in out


# -- quarantine


def test_quarantine_does_not_repeat_what_a_resumed_stream_brings_again(store, path):
    store.quarantine([{"stream": "a", "position": 1}, {"stream": "a", "position": 2}])
    store.quarantine([{"stream": "a", "position": 2}, {"stream": "b", "position": 2}])
    store.close()
    with Store.open(path, writable=True) as again:
        again.quarantine([{"stream": "a", "position": 1}, {"stream": "b", "position": 3}])
        places = [(r["stream"], r["position"]) for r in again.quarantined()]
    assert places == [("a", 1), ("a", 2), ("b", 2), ("b", 3)]


def test_a_torn_line_of_the_quarantine_is_repaired(store, path):
    store.quarantine([{"stream": "a", "position": 1}])
    with (path / "quarantine.jsonl").open("ab") as file:
        file.write(b'{"stream":"a","posi')
    store.quarantine([{"stream": "a", "position": 2}])
    assert [r["position"] for r in store.quarantined()] == [1, 2]
