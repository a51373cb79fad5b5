"""The vector index: what it finds, what it refuses, and when it has to be made anew."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from store.errors import StoreError
from store.vectors import Stamp, VectorIndex

WIDTH = 16
STAMP = Stamp(seq=7, revision="ab12", encoder="e0")


def vectors(count, seed=0):
    return normalize(
        torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def clustered(count, seed=0):
    """Vectors close to one of eight directions."""
    centres = vectors(8, seed)[torch.arange(count) % 8]
    return normalize(centres + 0.1 * vectors(count, seed + 1), dim=1)


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


def test_a_large_index_looks_at_some_lists_only_and_still_finds_the_nearest():
    index = VectorIndex(WIDTH, crossover=2_000)
    kept = clustered(4_000)
    index.add(range(1_000), kept[:1_000])
    assert index.is_exact
    index.add(range(1_000, 4_000), kept[1_000:])
    assert not index.is_exact and index.probed < index.lists
    assert index.search(kept, 1).ids.flatten().tolist() == list(range(4_000))


def test_a_large_index_has_as_many_results_as_are_asked_for():
    index = VectorIndex(WIDTH, crossover=2_000)
    index.add(range(2_000), clustered(2_000))
    found = index.search(clustered(5), 2_000)
    assert all(sorted(row) == list(range(2_000)) for row in found.ids.tolist())


def test_a_large_index_forgets_and_is_saved_like_a_small_one(tmp_path: Path):
    index = VectorIndex(WIDTH, crossover=2_000)
    kept = clustered(2_000)
    index.add(range(2_000), kept)
    index.remove(range(100))
    index.save(tmp_path / "index", STAMP)
    loaded = VectorIndex.load(tmp_path / "index", STAMP, WIDTH, 1_900, crossover=2_000)
    assert not loaded.is_exact and 99 not in loaded and 100 in loaded
    assert torch.equal(loaded.search(kept, 3).ids, index.search(kept, 3).ids)
    assert (loaded.search(kept, 3).ids >= 100).all()


def test_where_lists_would_find_too_little_everything_is_looked_at(monkeypatch):
    index = VectorIndex(WIDTH, crossover=1_000)
    kept = clustered(4_000)
    index.add(range(1_000), kept[:1_000])
    assert not index.is_exact
    monkeypatch.setattr("store.vectors.RECALL_MIN", 1.1)
    index.add(range(1_000, 4_000), kept[1_000:])
    assert index.is_exact and index.lists is None
    queries = vectors(20, seed=3)
    wanted = (queries @ kept.T).topk(5, 1).values
    torch.testing.assert_close(index.search(queries, 5).scores, wanted)


def test_lists_are_made_anew_as_the_index_grows():
    index = VectorIndex(WIDTH, crossover=1_000)
    kept = clustered(4_000)
    index.add(range(1_000), kept[:1_000])
    before = index.lists
    index.add(range(1_000, 4_000), kept[1_000:])
    assert index.lists > before
    assert index.search(kept, 1).ids.flatten().tolist() == list(range(4_000))


def test_an_index_that_is_to_be_exact_has_no_lists_at_any_size(tmp_path: Path):
    kept, queries = clustered(4_000), vectors(20, seed=3)
    exact, listed = VectorIndex(WIDTH, crossover=None), VectorIndex(WIDTH, crossover=1_000)
    for index in (exact, listed):
        index.add(range(4_000), kept)
        index.save(tmp_path / ("exact" if index is exact else "listed"), STAMP)
    assert exact.is_exact and not listed.is_exact
    wanted = (queries @ kept.T).topk(5, 1).values
    torch.testing.assert_close(exact.search(queries, 5).scores, wanted)
    loaded = VectorIndex.load(tmp_path / "exact", STAMP, WIDTH, 4_000, crossover=None)
    loaded.add([4_000], queries[:1])
    assert loaded.is_exact and loaded.search(queries[:1], 1).ids.tolist() == [[4_000]]
    assert VectorIndex.load(tmp_path / "listed", STAMP, WIDTH, 4_000, crossover=None) is None
