"""The journal: what was put is what is got, or an error that names the entry."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import datafile
from store.errors import IntegrityError, StoreFull
from store.journal import Journal, Put, label, seq_key, text_key, unwrap, wrap


@pytest.fixture
def journal(tmp_path):
    (tmp_path / "journal").mkdir()
    opened = Journal(tmp_path / "journal", writable=True, map_size_bytes=1 << 16)
    yield opened
    opened.close()


@given(st.binary(), st.binary(), st.integers(min_value=0))
def test_one_flipped_bit_is_noticed(key, payload, place):
    value = bytearray(wrap("refs", key, payload))
    assert unwrap("refs", key, bytes(value)) == payload
    value[place // 8 % len(value)] ^= 1 << place % 8
    with pytest.raises(IntegrityError, match="journal/refs"):
        unwrap("refs", key, bytes(value))


def test_a_value_is_good_only_where_it_was_put():
    value = wrap("refs", b"=a", b"{}")
    for table, key in (("refs", b"=b"), ("streams", b"=a")):
        with pytest.raises(IntegrityError):
            unwrap(table, key, value)


@given(st.integers(0, 2**63), st.integers(0, 2**63))
def test_keys_sort_as_their_numbers(a, b):
    assert (seq_key(a) < seq_key(b)) == (a < b)


@given(st.text(max_size=2000), st.text(max_size=2000))
def test_any_text_has_a_key_of_its_own(a, b):
    assert 0 < len(text_key(a)) <= 511
    assert (text_key(a) == text_key(b)) == (a == b)


def test_names_of_any_length_are_kept(journal):
    for name in ("", "n", "n" * 510, "n" * 100_000):
        journal.write([Put("streams", text_key(name), name[:9].encode())])
        assert journal.get("streams", text_key(name)) == name[:9].encode()
    assert len(list(journal.entries("streams"))) == 4


def test_a_transaction_is_made_whole_or_not_at_all(journal):
    journal.write([Put("revisions", seq_key(0), b"first", once=True)])
    with pytest.raises(IntegrityError, match="journal/revisions/0: is there already"):
        journal.write(
            [Put("refs", b"=head", b"x"), Put("revisions", seq_key(0), b"other", once=True)]
        )
    assert journal.get("refs", b"=head") is None
    assert journal.get("revisions", seq_key(0)) == b"first"


def test_a_map_that_is_too_small_grows_within_one_write(journal):
    changes = [Put("requests", text_key(str(n)), b"x" * 10_000) for n in range(200)]
    journal.write(changes)
    assert len(list(journal.entries("requests"))) == 200


def test_a_journal_at_its_largest_says_so(journal, monkeypatch):
    monkeypatch.setattr("store.journal.MAP_SIZE_MAX_BYTES", 1 << 18)
    with pytest.raises(StoreFull, match="largest size"):
        journal.write([Put("requests", b"=a", b"x" * (1 << 18))])


def test_a_snapshot_stays_as_it_was(journal, tmp_path):
    journal.write([Put("refs", b"=head", b"1")])
    with journal.snapshot():
        assert journal.get("refs", b"=head") == b"1"
        journal.write([Put("refs", b"=head", b"2")])
        assert journal.get("refs", b"=head") == b"1"
    assert journal.get("refs", b"=head") == b"2"


def test_entries_are_read_in_order_from_anywhere(journal):
    journal.write([Put("ledger", seq_key(n), b"%d" % n) for n in range(1000)])
    assert [payload for _, payload in journal.entries("ledger", seq_key(700))] == [
        b"%d" % n for n in range(700, 1000)
    ]
    assert journal.last_key("ledger") == seq_key(999)
    assert journal.last_key("refs") is None


@pytest.mark.parametrize("is_filled", [True, False])
def test_a_sound_file_is_never_taken_for_a_truncated_one(journal, monkeypatch, is_filled):
    if not is_filled:  # as when it was killed as soon as the transaction was made
        monkeypatch.setattr(Journal, "_fill", lambda self: None)
    chance = random.Random(5)
    for _ in range(150):
        keys = [text_key(str(chance.randrange(5))) for _ in range(chance.randrange(1, 40))]
        sizes = [chance.choice([9, 900, 5000, 30_000]) for _ in keys]
        payloads = [chance.choice([None, b"x" * size]) for size in sizes]
        changes = [
            Put("streams", key, payload) for key, payload in zip(keys, payloads, strict=True)
        ]
        journal.write(changes)
        datafile.require_whole(journal.folder / "data.mdb")


def test_labels_are_for_people():
    assert label("revisions", seq_key(7)) == "journal/revisions/7"
    assert label("refs", text_key("tag/v1")) == "journal/refs/tag/v1"
    assert label("ids", b"ab12") == "journal/ids/ab12"
