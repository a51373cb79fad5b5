"""The vector index: what it finds, what it refuses, and when it has to be made anew."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from store.errors import StoreError
from store.vectors import Stamp, VectorIndex, describe

WIDTH = 48
STAMP = Stamp(seq=7, revision="ab12", encoder="e0")


def vectors(count, seed=0):
    return normalize(
        torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1
    )


@pytest.fixture
def index():
    made = VectorIndex(WIDTH)
    made.add(range(100, 150), vectors(50))
    return made


@pytest.fixture
def path(index, tmp_path):
    path = tmp_path / "cache" / "memory.index"
    index.save(path, STAMP)
    return path


def load(path, stamp=STAMP, width=WIDTH, count=50):
    return VectorIndex.load(path, stamp, width, count)


def test_the_nearest_are_those_of_an_exact_search(index):
    queries = vectors(20, seed=1)
    wanted = (queries @ vectors(50).T).topk(5, 1)
    found = index.search(queries, 5)
    assert torch.equal(found.ids, wanted.indices + 100)
    torch.testing.assert_close(found.scores, wanted.values)


def test_there_are_no_more_results_than_vectors(index):
    assert index.search(vectors(3), 80).ids.shape == (3, 50)
    assert VectorIndex(WIDTH).search(vectors(3), 5).ids.shape == (3, 0)
    assert index.search(vectors(0), 5).ids.shape == (0, 5)


def test_what_is_removed_is_not_found_again(index):
    index.remove([100, 120])
    found = index.search(vectors(50), 48)
    assert not ((found.ids == 100) | (found.ids == 120)).any()
    assert len(index) == 48 and 100 not in index and 101 in index
    index.add([100], vectors(1))
    assert index.search(vectors(1), 1).ids.tolist() == [[100]]


@pytest.mark.parametrize(
    ("ids", "given"),
    [
        ([100], vectors(1)),  # is there
        ([1, 1], vectors(2)),  # twice
        ([-1], vectors(1)),
        ([1, 2], vectors(1)),
        ([1], torch.zeros(1, WIDTH + 1)),
        ([1], torch.full((1, WIDTH), torch.nan)),
        ([1], torch.full((1, WIDTH), torch.inf)),
    ],
)
def test_ids_and_vectors_that_do_not_fit_are_refused_and_change_nothing(index, ids, given):
    with pytest.raises(StoreError):
        index.add(ids, given)
    assert len(index) == 50
    assert index.search(vectors(1), 1).ids.tolist() == [[100]]


def test_an_unknown_id_is_not_removed(index):
    with pytest.raises(StoreError, match="no id 3"):
        index.remove([100, 3])
    assert 100 in index and len(index) == 50


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_query_that_is_not_finite_is_refused_by_name(index, bad):
    queries = vectors(2)
    queries[1, 3] = bad
    with pytest.raises(StoreError, match="NaN or Inf"):
        index.search(queries, 1)


def test_a_saved_index_finds_the_same(index, path):
    loaded = load(path)
    queries = vectors(20, seed=1)
    assert torch.equal(loaded.search(queries, 7).ids, index.search(queries, 7).ids)
    loaded.remove([101])
    loaded.add([5], vectors(1, seed=9))
    assert len(loaded) == 50 and 5 in loaded


@pytest.mark.parametrize(
    "other",
    [
        {"stamp": Stamp(8, "ab12", "e0")},
        {"stamp": Stamp(6, "ab12", "e0")},
        {"stamp": Stamp(7, "cd34", "e0")},
        {"stamp": Stamp(7, "ab12", "e1")},
        {"width": WIDTH + 1},
        {"count": 49},
        {"count": 51},
    ],
)
def test_an_index_that_stands_for_something_else_is_not_loaded(path, other):
    assert load(path) is not None
    assert load(path, **other) is None


def test_a_missing_index_is_not_loaded(tmp_path):
    assert load(tmp_path / "nothing") is None


def test_what_is_no_index_says_nothing_of_itself(tmp_path):
    assert describe(tmp_path / "missing") is None
    for content in (b"", b"0" * 9000, b"sum\n[1]\nvectors", b"sum\n{}\n"):
        (tmp_path / "index").write_bytes(content)
        assert describe(tmp_path / "index") is None


def test_any_flipped_bit_is_noticed(path):
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 97)):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        assert load(path) is None, place


def test_any_truncation_is_noticed(path):
    whole = path.read_bytes()
    for length in (0, 1, 64, 65, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert load(path) is None, length


def test_a_damaged_index_is_made_anew_and_replaces_the_file(path):
    path.write_bytes(path.read_bytes()[:-10])
    index = load(path)
    assert index is None
    made = VectorIndex(WIDTH)
    made.add(range(100, 150), vectors(50))
    made.save(path, STAMP)
    assert torch.equal(
        load(path).search(vectors(9, seed=2), 3).ids, made.search(vectors(9, seed=2), 3).ids
    )


def test_an_index_that_cannot_be_written_leaves_the_one_before(index, path, monkeypatch):
    before = path.read_bytes()
    index.remove([100])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(StoreError, match="no room"):
        index.save(path, Stamp(8, "cd34", "e0"))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.fixture
def few(monkeypatch):
    """A short list that is short for these indexes."""
    monkeypatch.setattr("store.vectors.SHORTLIST", 100)


def coded(kept, crossover=2_000):
    made = VectorIndex(WIDTH, crossover)
    made.add(range(len(kept)), kept)
    return made


def test_a_large_index_scores_some_vectors_only_and_still_finds_the_nearest(few):
    index = VectorIndex(WIDTH, crossover=2_000)
    kept = vectors(4_000)
    index.add(range(1_000), kept[:1_000])
    assert index.is_exact and index.recall is None
    index.add(range(1_000, 4_000), kept[1_000:])
    assert not index.is_exact and index.recall > 0.99
    found = index.search(kept, 3)
    assert found.ids[:, 0].tolist() == list(range(4_000))
    torch.testing.assert_close(found.scores, (kept.unsqueeze(1) * kept[found.ids]).sum(2))
    assert (found.scores.diff(dim=1) <= 0).all()


def test_a_large_index_has_as_many_results_as_are_asked_for(few):
    found = coded(vectors(2_000)).search(vectors(5, seed=3), 2_000)
    assert all(sorted(row) == list(range(2_000)) for row in found.ids.tolist())


def test_a_large_index_forgets_and_is_saved_like_a_small_one(few, tmp_path: Path):
    kept = vectors(2_000)
    index = coded(kept)
    index.remove(range(0, 2_000, 3))
    index.add([7_000], kept[3:4])
    left = torch.tensor([n for n in range(2_000) if n % 3])
    assert index.search(kept[left], 1).ids.flatten().tolist() == left.tolist()
    assert index.search(kept[3:4], 1).ids.tolist() == [[7_000]]
    index.remove(range(1, 200, 3))
    more = vectors(300, seed=9)
    index.add(range(8_000, 8_300), more)
    assert index.search(more, 1).ids.flatten().tolist() == list(range(8_000, 8_300))
    index.save(tmp_path / "index", STAMP)
    loaded = VectorIndex.load(tmp_path / "index", STAMP, WIDTH, len(index), crossover=2_000)
    assert not loaded.is_exact and loaded.recall == index.recall and 3 not in loaded
    said = describe(tmp_path / "index")
    assert (said.seq, said.revision, said.count) == (STAMP.seq, STAMP.revision, len(index))
    assert said.recall == index.recall
    assert torch.equal(loaded.search(kept, 3).ids, index.search(kept, 3).ids)


def test_where_codes_would_find_too_little_everything_is_looked_at(few, monkeypatch):
    index = VectorIndex(WIDTH, crossover=1_000)
    kept = vectors(4_000)
    index.add(range(1_000), kept[:1_000])
    assert not index.is_exact
    monkeypatch.setattr("store.vectors.RECALL_MIN", 1.1)
    index.add(range(1_000, 4_000), kept[1_000:])
    assert index.is_exact and index.recall is None
    queries = vectors(20, seed=3)
    wanted = (queries @ kept.T).topk(5, 1).values
    torch.testing.assert_close(index.search(queries, 5).scores, wanted)


def test_codes_are_made_anew_as_the_index_grows(few, monkeypatch):
    index = VectorIndex(WIDTH, crossover=1_000)
    kept = vectors(4_100)
    index.add(range(1_000), kept[:1_000])
    first = index._codes
    index.add(range(1_000, 3_999), kept[1_000:3_999])
    assert index._codes is first
    index.add(range(3_999, 4_100), kept[3_999:])
    assert index._codes is not first
    assert index.search(kept, 1).ids.flatten().tolist() == list(range(4_100))


def test_an_index_that_is_to_be_exact_has_no_codes_at_any_size(few, tmp_path: Path):
    kept, queries = vectors(4_000), vectors(20, seed=3)
    exact, shortened = coded(kept, crossover=None), coded(kept, crossover=1_000)
    assert exact.is_exact and not shortened.is_exact
    wanted = (queries @ kept.T).topk(5, 1).values
    torch.testing.assert_close(exact.search(queries, 5).scores, wanted)
    shortened.save(tmp_path / "index", STAMP)
    loaded = VectorIndex.load(tmp_path / "index", STAMP, WIDTH, 4_000, crossover=None)
    loaded.add([4_000], queries[:1])
    assert loaded.is_exact and loaded.search(queries[:1], 1).ids.tolist() == [[4_000]]
