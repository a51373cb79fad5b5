"""A history goes into one file and comes out of it the same; nothing else comes out of one."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from store import Draft, Replacement, Store, StoreError, durable
from store.archive import MANIFEST, export, restore
from store.canonical import digest
from store.check import verify
from store.errors import FormatVersionError, IntegrityError, StoreExists, StoreFull

Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def full(store: Store, grow: Callable[..., object]) -> Store:
    """Something in every table and folder, a rollback and a replacement among it."""
    grow(store, 2, tensors={"keys": torch.arange(4.0)})
    (second,) = grow(store, 1, tensors={"keys": torch.ones(2, 2)})
    new = Replacement({"keys": torch.zeros(2, 2)}, {"parts": []})
    store.commit(Draft("revert", second.id, "f9", replaces={second.id: new}))
    target = store.revision("@1")
    store.commit(Draft("rollback", target.id, target.fingerprint, head=target.id))
    store.tag("v1", "@3")
    store.record_ledger(2, {"SR": 0.5})
    store.quarantine([{"stream": "news", "position": 1, "line": "nonsense\u2028"}])
    store.put_cached("statistics/block-0", {"a": torch.ones(2)}, {})
    return store


@pytest.fixture
def archive(full: Store, tmp_path: Path) -> Path:
    export(full, tmp_path / "history.tar")
    full.close()
    return tmp_path / "history.tar"


def told(store: Store) -> dict[str, object]:
    return {
        "revisions": [(r.id, r.fingerprint, r.patch, dict(r.replaces)) for r in store.revisions()],
        "head": store.head_id,
        "tags": store.tags(),
        "streams": store.streams(),
        "ledger": [store.ledger(seq) for seq in range(store.length)],
        "requests": [store.request(f"request-{n}") for n in (1, 2, 3)],
        "subjects": store.requests_about("subject-1"),
        "quarantine": list(store.quarantined()),
        "settings": store.settings,
    }


def test_what_comes_out_is_what_went_in(full, archive, tmp_path):
    with Store.open(full.path) as opened:
        truth = told(opened)
    done = restore(archive, tmp_path / "other")
    with Store.open(tmp_path / "other", writable=True) as opened:
        assert told(opened) == truth
        assert verify(opened) == []
        assert (done.head, done.revisions, done.patches) == (truth["head"], 6, 3)
        opened.commit(Draft("edit", opened.head_id, "f"))  # and goes on


@pytest.mark.parametrize("place", ["a" * 300, "history.tar/below", "no/folder"])
def test_a_place_where_no_file_can_be_is_named(full, archive, tmp_path, place):
    with Store.open(full.path) as opened, pytest.raises(StoreError) as caught:
        export(opened, tmp_path / place)
    assert str((tmp_path / place).parent) in str(caught.value)


@pytest.mark.parametrize("place", ["b" * 300, "history.tar/below"])
def test_a_place_where_no_store_can_be_is_named(archive, tmp_path, place):
    with pytest.raises(StoreError) as caught:
        restore(archive, tmp_path / place)
    assert str(archive if "below" in place else tmp_path / place) in str(caught.value)


def test_the_name_of_the_journal_that_comes_out_is_synced(archive, tmp_path, monkeypatch):
    synced, real = [], durable._sync_folder
    monkeypatch.setattr(durable, "_sync_folder", lambda path: (synced.append(path), real(path)))
    restore(archive, tmp_path / "other")
    made = [path.name for path in synced if path.parent.name.startswith(".tmp-")]
    assert "journal" in made


def test_the_same_history_gives_the_same_bytes(full, archive, tmp_path):
    restore(archive, tmp_path / "other")
    for path, name in ((full.path, "again.tar"), (tmp_path / "other", "copy.tar")):
        with Store.open(path) as opened:
            export(opened, tmp_path / name)
        assert (tmp_path / name).read_bytes() == archive.read_bytes()


def test_the_base_model_may_lie_elsewhere(archive, tmp_path):
    restore(archive, tmp_path / "other", model="/elsewhere")
    with Store.open(tmp_path / "other") as opened:
        assert opened.settings["model"] == {"path": "/elsewhere"}


def test_a_store_whose_settings_name_no_model_is_not_pointed_to_one(tmp_path):
    with Store.init(tmp_path / "store", {"model": "m"}, {}, "f0") as opened:
        export(opened, tmp_path / "history.tar")
    with pytest.raises(IntegrityError, match=r"cedit.toml.*model = 'm', which is no table"):
        restore(tmp_path / "history.tar", tmp_path / "other", model="/elsewhere")
    assert not (tmp_path / "other").exists()


def test_a_damaged_store_is_not_exported(full, tmp_path):
    blob = full.blobs.path(full.revision("@3").patch.sha256)
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=blob.stem):
        export(full, tmp_path / "history.tar")
    assert list(tmp_path.glob("*.tar")) == [] and list(tmp_path.glob(".tmp-*")) == []


def test_nothing_is_overwritten(full, archive, tmp_path):
    with Store.open(full.path) as opened, pytest.raises(StoreExists):
        export(opened, archive)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter").write_text("x")
    for path in (full.path, tmp_path / "taken", archive):
        with pytest.raises(StoreExists):
            restore(archive, path)
    (tmp_path / "empty").mkdir()
    restore(archive, tmp_path / "empty")


def test_without_room_nothing_is_begun(full, archive, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(StoreFull, match="1,000 are free"):
        restore(archive, tmp_path / "other")
    with Store.open(full.path) as opened, pytest.raises(StoreFull, match="are needed"):
        export(opened, tmp_path / "again.tar")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cedit", "history.tar"]


# -- hostile archives


def members(archive: Path) -> Members:
    with tarfile.open(archive) as tar:
        return [(entry, tar.extractfile(entry).read()) for entry in tar]


def write(path: Path, content: Members) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for entry, data in content:
            tar.addfile(entry, io.BytesIO(data))
    return path


def plain(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    return entry, data


def with_manifest(content: Members, change: Callable[[dict], object] = lambda _: None) -> Members:
    """The members with a manifest that fits them again, after a change to it."""
    rest = content[1:]
    manifest = json.loads(content[0][1])
    manifest["members"] = [
        {"name": e.name, "length": len(data), "sha256": digest(data)} for e, data in rest
    ]
    change(manifest)
    return [plain(MANIFEST, json.dumps(manifest).encode()), *rest]


def replaced(content: Members, name: str, data: bytes) -> Members:
    return [plain(name, data) if entry.name == name else (entry, d) for entry, d in content]


def refused(archive: Path, content: Members, tmp_path: Path, match: str) -> None:
    hostile = write(tmp_path / "hostile.tar", content)
    with pytest.raises(IntegrityError, match=match) as caught:
        restore(hostile, tmp_path / "deep" / "other")
    assert "hostile.tar is not as `cedit export` wrote it" in str(caught.value)
    assert not (tmp_path / "deep" / "other").exists()
    assert list((tmp_path / "deep").iterdir()) == []
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "/tmp/evil", "patches/../../evil", "patches/ab/../../../evil", "lock"),
        *("journal/data.mdb", "patches/ab/evil.safetensors", "cedit.toml\n", "./cedit.toml", ""),
        *("journal/../cedit.toml", "patches\\evil", "\udcff", "cache/x"),
    ],
)
def test_a_member_of_another_name_is_refused(archive, tmp_path, name):
    content = [*members(archive), plain(name, b"evil")]
    refused(archive, with_manifest(content), tmp_path, "which no store has")
    refused(archive, content, tmp_path, "not in its manifest")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE],
)
def test_what_is_no_plain_file_is_refused(archive, tmp_path, kind):
    content = members(archive)
    entry = tarfile.TarInfo("quarantine.jsonl")
    entry.type, entry.linkname = kind, "/etc/passwd"
    content = [(entry, b"") if e.name == entry.name else (e, d) for e, d in content]
    refused(archive, with_manifest(content), tmp_path, "not a plain file")


def test_members_must_be_those_of_the_manifest(archive, tmp_path):
    content = members(archive)
    refused(archive, [*content, content[-1]], tmp_path, "not in its manifest")
    refused(archive, with_manifest([*content, content[-1]]), tmp_path, "lists a member twice")
    refused(archive, content[:-1], tmp_path, "missing")
    refused(archive, [content[0], *content[2:], content[1]], tmp_path, "stands where")
    refused(archive, content[1:], tmp_path, "stands where")
    lacking = [m for m in content if m[0].name != "journal/refs.jsonl"]
    refused(archive, with_manifest(lacking), tmp_path, "lacks journal/refs")


def test_lengths_that_promise_more_than_there_is_are_refused(archive, tmp_path):
    def grow(manifest: dict) -> None:
        manifest["members"][-1]["length"] = 1 << 60

    refused(archive, with_manifest(members(archive), grow), tmp_path, "more bytes than")

    def shrink(manifest: dict) -> None:
        manifest["members"][-1]["length"] -= 1

    refused(archive, with_manifest(members(archive), shrink), tmp_path, "bytes where")
    for wrong in (-1, 1.5, "9", None, True):
        refused(
            archive,
            with_manifest(members(archive), lambda m, w=wrong: m["members"][0].update(length=w)),
            tmp_path,
            "no length",
        )


def test_a_sparse_member_is_refused(archive, tmp_path):
    content = members(archive)
    entry = tarfile.TarInfo("quarantine.jsonl")
    entry.type, entry.size = tarfile.GNUTYPE_SPARSE, 512
    content = [(entry, b"\0" * 512) if e.name == entry.name else (e, d) for e, d in content]
    refused(archive, with_manifest(content), tmp_path, "plain file|damaged|bytes where|missing")


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{", b'{"archive":NaN}', b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(archive, tmp_path, manifest):
    content = replaced(members(archive), MANIFEST, manifest)
    refused(archive, content, tmp_path, "manifest")


def test_another_format_is_refused_by_name(archive, tmp_path):
    for key in ("archive", "store"):
        content = with_manifest(members(archive), lambda m, k=key: m.update({k: 99}))
        hostile = write(tmp_path / "hostile.tar", content)
        with pytest.raises(FormatVersionError, match=f"{key} = 99") as caught:
            restore(hostile, tmp_path / "other")
        assert caught.value.exit_code == 12


def test_every_flipped_byte_of_a_member_is_noticed(archive, tmp_path):
    for place in range(1, len(members(archive))):
        content = members(archive)
        entry, data = content[place]
        if not data:
            continue
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        content[place] = entry, bytes(flipped)
        refused(archive, content, tmp_path, "bytes are not those|not the line")


HOSTILE_ENTRIES = [
    ("refs", b"3d68656164\t7\n"),
    ("refs", b"3d7461672f2e2e\t" + b'"' + b"0" * 64 + b'"\n'),
    ("refs", b'ff\t"x"\n'),
    ("ids", b"61\t-5\n"),
    ("ids", b"61\t99999999999999999999999999\n"),
    ("requests", b'3d78\t{"id":"x","seq":"y","subject":null,"record":{}}\n'),
    ("requests", b'3d78\t{"id":"z","seq":1,"subject":null,"record":{}}\n'),
    ("requests", b'3d78\t{"id":["x"],"seq":1,"subject":null,"record":{}}\n'),
    ("subjects", b'00\t{"subject":"x","request":5}\n'),
    ("streams", b'3d78\t{"name":[],"record":{}}\n'),
    ("revisions", b'0000000000000009\t{"seq":9}\n'),
    ("revisions", b"0000000000000006\t" + b"[" * 5000 + b"\n"),
    (
        "revisions",
        b'0000000000000006\t{"seq":6,"previous":["x"],"parent":{},"operation":1,"patch":7,'
        b'"fingerprint":null,"body":[],"replaces":5}\n',
    ),
    ("ledger", b"6161\t{}\n"),
    ("ledger", b"zz\t{}\n"),
    ("ledger", b"00\n"),
    ("ledger", b"\t{}\n"),
    ("ledger", b"00" * 600 + b"\t{}\n"),
    ("ledger", b"0000000000000002\t{}\n"),
]


@pytest.mark.parametrize(("table", "line"), HOSTILE_ENTRIES)
def test_an_entry_that_does_not_fit_is_refused_though_every_checksum_does(
    archive, tmp_path, table, line
):
    name = f"journal/{table}.jsonl"
    data = next(data for entry, data in members(archive) if entry.name == name)
    content = with_manifest(replaced(members(archive), name, data + line))
    refused(archive, content, tmp_path, "journal/")


def test_a_patch_that_is_none_is_refused_though_every_checksum_does(archive, tmp_path):
    content = members(archive)
    name = next(e.name for e, _ in content if e.name.startswith("patches/"))
    refused(archive, with_manifest(replaced(content, name, b"evil")), tmp_path, "patches/")


def test_another_head_than_the_manifest_says_is_refused(archive, tmp_path):
    content = with_manifest(members(archive), lambda m: m.update(fingerprint="0" * 64))
    refused(archive, content, tmp_path, "another head")


@pytest.mark.parametrize("data", [b"", b"nonsense" * 200, b"\x1f\x8b\x08\x00" + b"\0" * 600])
def test_what_is_no_archive_is_refused(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(StoreError, match=r"archive|manifest"):
        restore(tmp_path / "x.tar", tmp_path / "other")
    with pytest.raises(StoreError, match="can't be read"):
        restore(tmp_path / "none.tar", tmp_path / "other")


def test_a_truncated_archive_is_refused(archive, tmp_path):
    data = archive.read_bytes()
    last = members(archive)[-1][0]
    end = last.offset_data + last.size  # behind it there is padding alone
    for kept in [*range(0, end, end // 23), end - 1]:
        (tmp_path / "cut.tar").write_bytes(data[:kept])
        with pytest.raises(StoreError):
            restore(tmp_path / "cut.tar", tmp_path / "other")
        assert not (tmp_path / "other").exists()


def test_an_import_that_breaks_off_leaves_nothing(archive, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("store.archive._require_sound", fail)
    with pytest.raises(KeyboardInterrupt):
        restore(archive, tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cedit", "history.tar"]
