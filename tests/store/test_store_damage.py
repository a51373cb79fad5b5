"""Whatever is damaged, `verify` names it, and reading it never passes for the truth."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from store import Draft, Store, canonical, check, datafile
from store.blobs import BlobRef
from store.check import Problem, verify, verify_path
from store.errors import FormatVersionError, IntegrityError, NoStore
from store.journal import Put, label, seq_key, text_key
from store.revisions import Revision, payload_of

PAGE = 4096


@pytest.fixture
def full(store, path, grow) -> Path:
    """A closed store with an entry in every table, and no blobs (they need torch to be read)."""
    grow(store, 5)
    store.tag("v1", "head~1")
    store.record_ledger(3, {"SR": 0.75})
    store.close()
    return path


def flip(file: Path, pattern: bytes, offset: int = 0, bit: int = 1) -> None:
    """Flip a bit in every occurrence of a pattern: pages leave old copies behind."""
    data = bytearray(file.read_bytes())
    found = data.find(pattern)
    assert found >= 0, pattern
    while found >= 0:
        data[found + offset] ^= bit
        found = data.find(pattern, found + len(pattern))
    file.write_bytes(data)


def problems_of(path: Path) -> list[Problem]:
    with Store.open(path) as store:
        return verify(store)


def test_a_sound_store_has_no_problems(full):
    assert problems_of(full) == []
    assert verify_path(full) == []


# Part of a payload, and the entry that it stands in.
PAYLOADS = [
    (b'"fingerprint":"f3"', "journal/revisions/3"),
    (b'"prompt":"prompt-2"', "journal/requests/request-2"),
    (b'"subject":"subject-1"}', "journal/subjects/"),
    (b'{"SR":0.75}', "journal/ledger/3"),
    (b'{"name":"news","record":{"position":5}}', "journal/streams/news"),
]


@pytest.mark.parametrize(("pattern", "named"), PAYLOADS)
def test_a_flipped_bit_in_a_record_is_named(full, pattern, named):
    flip(full / "journal" / "data.mdb", pattern, offset=len(pattern) - 3)
    assert any(p.object.startswith(named) and not p.harmless for p in problems_of(full))


def test_a_flipped_bit_in_a_ref_is_named(full):
    with Store.open(full) as store:
        head, tagged = store.head.id, store.revision("v1").id
    # Payloads of refs end in the quoted id, and alone begin with it.
    for identity, named in ((head, "journal/refs/head"), (tagged, "journal/refs/tag/v1")):
        flip(full / "journal" / "data.mdb", f'"{identity}"'.encode(), offset=5)
        assert named in {p.object for p in problems_of(full)}


def test_a_flipped_bit_in_a_key_is_named(full):
    with Store.open(full) as store:
        identity = store.revision("@2").id.encode()
    data = (full / "journal" / "data.mdb").read_bytes()
    assert identity in data
    flip(full / "journal" / "data.mdb", b"=request-2", offset=9, bit=8)
    named = {p.object for p in problems_of(full)}
    assert "journal/revisions/2" in named  # its request is missing
    assert "journal/requests/request-:" in named  # and stands where it was not put


def test_a_damaged_record_is_refused_when_it_is_read(full):
    flip(full / "journal" / "data.mdb", b'"prompt":"prompt-2"', offset=12)
    with Store.open(full) as store, pytest.raises(IntegrityError) as caught:
        store.request("request-2")
    assert caught.value.object == "journal/requests/request-2"
    assert caught.value.exit_code == 20


@pytest.mark.parametrize("kept", [0, 100, PAGE + 10, 2 * PAGE, -PAGE, -1])
def test_a_truncated_journal_is_named_and_not_mapped(full, kept):
    file = full / "journal" / "data.mdb"
    data = file.read_bytes()[: used(file)]
    file.write_bytes(data[:kept])
    with pytest.raises(IntegrityError, match=r"journal/data\.mdb"):
        Store.open(full)
    with pytest.raises(IntegrityError, match=r"journal/data\.mdb"):
        Store.open(full, writable=True)


def test_a_truncated_journal_is_a_problem_for_verify(full):
    file = full / "journal" / "data.mdb"
    file.write_bytes(file.read_bytes()[: used(file) - 2 * PAGE])
    (problem,) = verify_path(full)
    assert problem.object == "journal/data.mdb"
    assert "cut off" in problem.problem


def test_what_the_file_is_longer_than_its_content_may_be_cut_off(full):
    file = full / "journal" / "data.mdb"
    assert file.stat().st_size > used(file)
    file.write_bytes(file.read_bytes()[: used(file)])
    assert verify_path(full) == []


def used(file: Path) -> int:
    """Bytes of a journal up to the last page that is in use."""
    return datafile._settled_meta(file).length


def test_a_flipped_bit_in_a_meta_page_does_not_bring_back_the_past(full):
    file = full / "journal" / "data.mdb"
    data = bytearray(file.read_bytes())
    transactions = [data[144], data[PAGE + 144]]
    older = 0 if transactions[0] < transactions[1] else PAGE
    data[older + 145] ^= 1  # the older state now seems to be the newest
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="contradict"):
        Store.open(full)


def test_no_damaged_page_goes_unnoticed_or_stops_verify(full):
    """Every page in turn is overwritten; the child may die, verify_path may not."""
    file = full / "journal" / "data.mdb"
    sound = file.read_bytes()
    noticed = 0
    for page in range(2, len(sound) // PAGE):
        start = page * PAGE
        file.write_bytes(sound[:start] + b"\xff" * PAGE + sound[start + PAGE :])
        problems = verify_path(full)
        assert all(isinstance(problem, Problem) for problem in problems)
        noticed += bool(problems)
    assert noticed >= 7  # each table's root; the rest are free pages


def test_random_bits_never_change_what_is_read(full):
    """After a flip anywhere, verify names a problem, or all is as it was."""
    file = full / "journal" / "data.mdb"
    sound = file.read_bytes()
    with Store.open(full) as store:
        truth = [revision.id for revision in store.revisions()], store.head
    chance = random.Random(7)
    for _ in range(12):
        data = bytearray(sound)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
        if not verify_path(full):
            with Store.open(full) as store:
                assert ([r.id for r in store.revisions()], store.head) == truth


def test_death_by_signal_is_a_problem():
    child = subprocess.run(["sh", "-c", "kill -BUS $$"], capture_output=True, check=False)
    (problem,) = check._reported(child)
    assert problem == Problem("journal/data.mdb", "reading it ends the process by SIGBUS")


# -- a changed past, with every checksum in order


def forge(store: Store, *changes: Put) -> None:
    store.journal.write(list(changes))


def test_a_rewritten_revision_breaks_the_chain(store, grow):
    grow(store, 4)
    old = store.revision("@2")
    draft = Draft("edit", old.parent, "forged", old.body)
    forge(store, Put("revisions", seq_key(2), payload_of(draft, 2, old.previous, None)))
    broken = "does not follow entry 2: the past was changed"
    assert Problem("journal/revisions/3", broken) in verify(store)


def test_a_missing_revision_is_named(store, grow):
    grow(store, 4)
    forge(store, Put("revisions", seq_key(2), None))
    assert "journal/revisions/2" in {p.object for p in verify(store)}
    with pytest.raises(IntegrityError, match="journal/revisions/2"):
        store.lineage("head")


def test_a_parent_must_come_before(store, grow):
    grow(store, 1)
    later = Revision.from_payload(payload_of(Draft("edit", "0" * 64, "f"), 2, store.head.id, None))
    payload = payload_of(Draft("edit", "0" * 64, "f"), 2, store.head.id, None)
    forge(store, Put("revisions", seq_key(2), payload))
    forge(store, Put("ids", later.id.encode(), b"2"))
    assert [p.problem for p in verify(store)] == [f"its parent {'0' * 64} is missing"]


@pytest.mark.parametrize(
    ("table", "key", "payload"),
    [
        ("refs", text_key("head"), canonical.dumps("0" * 64)),
        ("refs", text_key("tag/lost"), canonical.dumps("0" * 64)),
        ("refs", text_key("head"), None),
        ("ledger", seq_key(77), b"{}"),
        ("streams", text_key("news"), b"[]"),
        ("requests", text_key("request-1"), b"{"),
        ("requests", text_key("request-1"), b"{}"),
        ("revisions", seq_key(1), b"{}"),
        ("revisions", seq_key(9), canonical.dumps({"seq": 1})),
    ],
)
def test_an_entry_that_does_not_fit_is_named(store, grow, table, key, payload):
    grow(store, 2)
    forge(store, Put(table, key, payload))
    assert label(table, key) in {p.object for p in verify(store)}


def test_the_index_of_subjects_is_checked_both_ways(store, grow):
    grow(store, 2)
    key, payload = next(store.journal.entries("subjects"))
    forge(store, Put("subjects", key, None))
    assert any("index of subjects" in p.problem for p in verify(store))
    forge(store, Put("subjects", b"\0" * len(key), payload))
    assert any("another subject" in p.problem for p in verify(store))


# -- blobs and files


@pytest.fixture
def patched(store, path, grow) -> tuple[Store, Path, BlobRef]:
    import torch

    (revision,) = grow(store, 1, tensors={"keys": torch.ones(4, 4)})
    assert revision.patch is not None
    return store, store.blobs.path(revision.patch.sha256), revision.patch


def test_a_flipped_bit_in_a_blob_is_named(patched):
    store, file, ref = patched
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (problem,) = verify(store)
    assert problem.object == f"patches/{ref.sha256[:2]}/{ref.sha256}.safetensors"
    with pytest.raises(IntegrityError, match=ref.sha256):
        store.tensors("head")


def test_a_truncated_blob_is_named(patched):
    store, file, _ = patched
    file.write_bytes(file.read_bytes()[:-8])
    (problem,) = verify(store)
    assert "bytes where" in problem.problem


def test_a_missing_blob_is_named(patched):
    store, file, _ = patched
    file.unlink()
    (problem,) = verify(store)
    assert "can't be read" in problem.problem


def test_verify_reads_blobs_in_the_child_too(patched):
    store, file, ref = patched
    path = store.path
    store.close()
    file.write_bytes(b"")
    (problem,) = verify_path(path)
    assert ref.sha256 in problem.object


def test_what_an_interrupted_write_left_is_harmless(patched):
    import torch

    store, file, _ = patched
    (file.parent / ".tmp-0123").write_bytes(b"half")
    orphan = store.blobs.put({"other": torch.ones(2)}, {})
    problems = verify(store)
    assert all(problem.harmless for problem in problems)
    assert {p.object.rsplit("/", 1)[1] for p in problems} == {
        ".tmp-0123",
        f"{orphan.sha256}.safetensors",
    }


def test_a_damaged_toml_is_named(full):
    (full / "cedit.toml").write_text("format = ")
    assert [p.object for p in verify_path(full)] == ["cedit.toml"]


def test_a_newer_format_is_refused_by_name(full):
    toml = full / "cedit.toml"
    toml.write_text(toml.read_text().replace("format = 4", "format = 6"))
    with pytest.raises(FormatVersionError, match=r"format = 6.*format = 4.*newer") as caught:
        Store.open(full)
    assert caught.value.exit_code == 12
    with pytest.raises(FormatVersionError):
        verify_path(full)


def test_nothing_to_verify_is_no_store(tmp_path):
    with pytest.raises(NoStore) as caught:
        verify_path(tmp_path)
    assert caught.value.exit_code == 10


def test_a_bad_line_of_the_quarantine_is_named(full):
    with Store.open(full, writable=True) as store:
        store.quarantine([{"stream": "a", "position": n, "raw": "text"} for n in range(2)])
    file = full / "quarantine.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    lines = [first, b"nonsense\n", b"[]\n", second.replace(b"text", b"tent"), b'{"a":1}\n']
    lines += [bytes(512) + b'1"}\n', b'{"torn']
    file.write_bytes(b"".join(lines))
    assert [(p.object, p.harmless) for p in problems_of(full)] == [
        ("quarantine.jsonl:2", False),  # no JSON
        ("quarantine.jsonl:3", False),  # no record
        ("quarantine.jsonl:4", False),  # changed
        ("quarantine.jsonl:5", True),  # of an earlier version
        ("quarantine.jsonl:6", True),  # torn by a power loss
        ("quarantine.jsonl:7", True),  # cut off
    ]
    with Store.open(full) as store:
        assert list(store.quarantined()) == [
            {"stream": "a", "position": 0, "raw": "text"},
            {"a": 1},
        ]


def test_a_changed_setting_is_named_and_may_be_meant(full):
    toml = full / "cedit.toml"
    toml.write_text(toml.read_text().replace('path = "m"', 'path = "n"'))
    assert [(p.object, p.harmless) for p in problems_of(full)] == [("cedit.toml", True)]
