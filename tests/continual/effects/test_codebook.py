"""The arithmetic of a codebook, against a loop over its entries in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from continual.effects import GatedEffect
from continual.effects.codebook import Codebook
from continual.effects.gated import Mount
from continual.effects.places import GatePlace
from continual.errors import EditError
from continual.patches.codebook import CodebookPatch
from continual.recheck.kept_tokens import PlaceQueries

WIDTH = 12
BLUR = 1e-4


def a_book() -> Codebook:
    modules = (nn.Identity(), nn.Identity())
    return Codebook(Mount(GatePlace.at(1), WIDTH, torch.device("cpu"), modules))


def rows(
    keys: Tensor, labels: list[int], radius: float = 1.0, shares: bool = True, owner: str = "r"
) -> CodebookPatch:
    count = len(keys)
    return CodebookPatch(
        1,
        keys,
        keys.flip(1) + 1.0,
        torch.full((count,), radius),
        torch.full((count,), BLUR),
        tuple((label, 7) for label in labels),
        (shares,) * count,
        (owner,) * count,
    )


def point(*numbers: float) -> Tensor:
    return torch.tensor([[*numbers, *[0.0] * (WIDTH - len(numbers))]])


def clustered(count: int, seed: int) -> Tensor:
    """Points around a few centres, so that many are near each other."""
    draw = torch.Generator().manual_seed(seed)
    centres = 2.0 * torch.randn(5, WIDTH, generator=draw)
    chosen = torch.randint(0, 5, (count,), generator=draw)
    spread = 0.1 + 0.4 * torch.rand(count, 1, generator=draw)
    return centres[chosen] + spread * torch.randn(count, WIDTH, generator=draw)


# --- the loop -------------------------------------------------------------------------------------


@dataclass
class Entry:
    key: list[float]
    value: list[float]
    radius: float
    blur: float
    label: tuple[int, ...]
    is_open: bool = True


def distance(one: list[float], other: list[float]) -> float:
    return math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(one, other, strict=True)))


def single(number: float) -> float:
    return float(torch.tensor(number, dtype=torch.float32))


class Loop:
    """The rules, one entry after another."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def nearest(self, query: list[float]) -> tuple[Entry, float] | None:
        best = None
        for entry in self.entries:
            if entry.is_open:
                far = distance(query, entry.key)
                if best is None or far <= best[1]:
                    best = entry, far
        return best

    def put(self, patch: CodebookPatch) -> None:
        for i in range(len(patch.keys)):
            radius, blur = float(patch.radii[i]), float(patch.blurs[i])
            new = Entry(
                patch.keys[i].tolist(), patch.values[i].tolist(), radius, blur, patch.labels[i]
            )
            while True:
                near = self.nearest(new.key)
                if near is None or near[1] > radius + near[0].radius:
                    self.entries.append(new)
                    break
                old, far = near
                if old.label == new.label and patch.shares[i]:
                    old.radius = max(old.radius, single(far + blur))
                    break
                if far / 2 <= max(blur, old.blur):
                    old.is_open = False
                    continue
                old.radius = min(old.radius, single(far / 2))
                new.radius = min(radius, single(far / 2))
                self.entries.append(new)
                break

    def answer(self, query: list[float]) -> int:
        near = self.nearest(query)
        if near is None or near[1] > near[0].radius:
            return -1
        return next(i for i, entry in enumerate(self.entries) if entry is near[0])

    def radii(self) -> list[float]:
        return [entry.radius if entry.is_open else -1.0 for entry in self.entries]


def streams(seed: int) -> list[CodebookPatch]:
    """Patches of one to three rows, some of which repeat a point of an earlier one."""
    draw = torch.Generator().manual_seed(seed)
    points = clustered(40, seed)
    points[10] = points[3]
    points[20] = points[11]
    labels = torch.randint(0, 4, (40,), generator=draw).tolist()
    patches, first = [], 0
    while first < 40:
        size = int(torch.randint(1, 4, (1,), generator=draw))
        shares = bool(torch.rand(1, generator=draw) < 0.8)
        own = points[first : first + size]
        patches.append(rows(own, labels[first : first + size], 1.2, shares, f"request {first}"))
        first += size
    return patches


def queries_near(seed: int) -> Tensor:
    near = clustered(40, seed).repeat_interleave(5, 0)
    return near + 0.3 * torch.randn(near.shape, generator=torch.Generator().manual_seed(seed + 1))


@pytest.mark.parametrize("seed", range(4))
def test_entries_radii_and_answers_are_those_of_the_loop(seed):
    book, loop = a_book(), Loop()
    queries = queries_near(seed)
    answered = 0
    for patch in streams(seed):
        book.extend(patch)
        loop.put(patch)
        assert book.radii.tolist() == loop.radii()
        assert book.labels == [entry.label for entry in loop.entries]
        assert torch.equal(book.values, torch.tensor([e.value for e in loop.entries]))
        found = book.rows_of(queries).tolist()
        assert found == [loop.answer(query) for query in queries.tolist()]
        answered += sum(entry >= 0 for entry in found)
    assert answered > 50 and min(book.radii.tolist()) == -1.0 and max(book.radii.tolist()) > 1.2


def test_far_points_have_an_entry_each():
    book = a_book()
    book.extend(rows(point(0.0), [1]))
    book.extend(rows(point(2.1), [2]))
    assert book.radii.tolist() == [1.0, 1.0]


def test_the_same_label_widens_the_entry_that_is_near():
    book = a_book()
    book.extend(rows(point(0.0), [1]))
    book.extend(rows(point(1.5), [1]))
    assert len(book.radii) == 1 and float(book.radii) == single(1.5 + BLUR)
    assert book.rows_of(point(1.5)).tolist() == [0]  # not lost to rounding at the rim
    book.extend(rows(point(0.5), [1]))
    assert float(book.radii) == single(1.5 + BLUR)  # it does not shrink again


def test_whoever_listens_hears_every_row_that_an_entry_answers():
    book = a_book()
    book.extend(rows(point(0.0), [1]))
    book.extend(rows(torch.cat([point(1.5), point(9.0)]), [1, 2]))  # the first one is shared
    queries = torch.cat([point(0.75), point(5.0), point(9.0)])
    with book.heard() as passes:
        book.changed(queries, torch.zeros_like(queries))
        book.truncate(1)
        book.changed(queries, torch.zeros_like(queries))
    both, one = passes
    assert (both.length, both.tokens.tolist(), both.rows.tolist()) == (3, [0, 0, 2], [0, 1, 2])
    assert both.strengths.tolist() == pytest.approx([1 - 0.75 / (1.5 + BLUR)] * 2 + [1.0])
    assert (one.tokens.tolist(), one.rows.tolist()) == ([0], [0])
    book.extend(rows(point(4.0), [3]))
    with book.heard() as passes:
        book.changed(point(4.0), point(0.0))
    assert passes[0].rows.tolist() == [1]  # rows that were taken off leave no number behind


def test_another_label_shares_the_way_between_them():
    book = a_book()
    book.extend(rows(point(0.0), [1]))
    book.extend(rows(point(0.8), [2]))
    assert book.radii.tolist() == [single(0.4), single(0.4)]
    answers = book.rows_of(torch.cat([point(0.3), point(0.5), point(0.4), point(-0.5)]))
    assert answers.tolist() == [0, 1, 1, -1]  # in the middle the later one; none behind the rim


def test_a_clash_never_widens_an_entry():
    book = a_book()
    book.extend(rows(point(0.0), [1], 0.1))
    book.extend(rows(point(1.05), [2], 1.0))
    assert book.radii.tolist() == [single(0.1), single(0.525)]


def test_the_same_point_with_another_label_takes_its_place():
    book = a_book()
    book.extend(rows(point(0.0), [1]))
    book.extend(rows(point(0.0), [2]))
    assert book.radii.tolist() == [-1.0, 1.0]
    assert book.rows_of(point(0.6)).tolist() == [1]
    book.truncate(1)
    assert book.radii.tolist() == [1.0] and book.rows_of(point(0.6)).tolist() == [0]


def test_labels_with_the_same_mean_are_not_the_same():
    book = a_book()
    one = rows(point(0.0), [1])
    book.extend(one)
    other = CodebookPatch(
        1, point(0.5), point(1.0), one.radii, one.blurs, ((7, 1),), (True,), ("s",)
    )
    book.extend(other)
    assert len(book.radii) == 2


def test_a_row_whose_answer_differs_has_an_entry_although_the_label_is_the_same():
    book = a_book()
    book.extend(rows(point(0.0), [1]))
    book.extend(rows(point(0.8), [1], shares=False))
    assert book.radii.tolist() == [single(0.4), single(0.4)]


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_going_back_restores_every_radius_bit_for_bit(seed):
    book = a_book()
    states = [(book.keys.clone(), book.values.clone(), book.radii.clone(), list(book.labels))]
    for patch in streams(seed):
        book.extend(patch)
        states.append((book.keys.clone(), book.values.clone(), book.radii.clone(), [*book.labels]))
    for size in reversed(range(len(states))):
        book.truncate(size)
        keys, values, radii, labels = states[size]
        assert torch.equal(book.keys, keys) and torch.equal(book.values, values)
        assert torch.equal(book.radii, radii) and book.labels == labels
        assert book.size == size


@pytest.mark.parametrize("seed", range(3))
def test_without_a_request_it_is_the_codebook_that_never_had_it(seed):
    patches = streams(seed)
    for patch in patches[::3]:
        owner = patch.owners[0]
        less = [kept for one in patches if (kept := one.without(owner)) is not None]
        book, loop = a_book(), Loop()
        for one in less:
            book.extend(one)
        for one in (one for one in patches if one.owners[0] != owner):
            loop.put(one)
        assert book.radii.tolist() == loop.radii()


def test_patches_in_one_come_to_the_same():
    book, whole = a_book(), a_book()
    patches = streams(1)
    for patch in patches:
        book.extend(patch)
    (joined,) = CodebookPatch.joined(patches)
    joined.check()
    whole.extend(joined)
    assert torch.equal(book.radii, whole.radii) and torch.equal(book.values, whole.values)


# --- what it does to a layer ----------------------------------------------------------------------


def test_only_rows_that_an_entry_answers_are_replaced():
    book = a_book()
    book.extend(rows(torch.cat([point(0.0), point(4.0)]), [1, 2]))
    queries = torch.stack([point(0.1), point(9.0), point(4.2)]).view(1, 3, WIDTH)
    output = torch.randn(1, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    found = book.changed(queries, output)
    assert torch.equal(found[0, 0], book.values[0]) and torch.equal(found[0, 2], book.values[1])
    assert torch.equal(found[0, 1], output[0, 1])
    assert book.changed(queries + 50.0, output) is output
    with book.silenced():
        assert book.size == 0 and not book.reach().gates
    assert book.size == 1 and isinstance(book, GatedEffect)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_an_answer_does_not_depend_on_what_else_is_asked(scale):
    book = a_book()
    for patch in streams(2):
        book.extend(rows(scale * patch.keys, [label[0] for label in patch.labels], 1.2 * scale))
    queries = scale * queries_near(2)
    together = book.rows_of(queries).tolist()
    assert together == [int(book.rows_of(query[None])) for query in queries]
    assert len({*together}) > 5


@pytest.mark.parametrize("seed", range(4))
def test_a_query_whose_answer_changes_is_named_beforehand(seed):
    """Between any two states on the way: no answer changes that was not said to, and not all
    are."""
    book, patches, queries = a_book(), streams(seed), queries_near(seed)
    kept = PlaceQueries(queries)
    before = [self_answers(book, queries)]
    changed = named = 0
    for patch in patches:
        book.extend(patch)
        now = self_answers(book, queries)
        for size, earlier in enumerate(before):
            differs = book.may_differ(kept, size)
            really = torch.tensor([a != b for a, b in zip(earlier, now, strict=True)])
            assert not bool((really & ~differs).any())
            changed, named = changed + int(really.sum()), named + int(differs.sum())
        before.append(now)
    assert not bool(book.may_differ(kept, book.size).any())
    assert 0 < changed <= named < 0.9 * len(queries) * len(patches) * (len(patches) + 1) / 2


def self_answers(book: Codebook, queries: Tensor) -> list[tuple[float, ...]]:
    """The value that answers each query, or none."""
    return [tuple(book.values[e].tolist()) if e >= 0 else () for e in book.rows_of(queries)]


# --- files ----------------------------------------------------------------------------------------


def test_it_comes_back_from_its_file_as_it_was():
    from continual.patches import pack, unpack

    given = rows(clustered(3, 0), [1, 2, 3])
    (found,) = unpack(*pack([given]))
    assert isinstance(found, CodebookPatch) and found.owners == given.owners
    assert found.meta() == given.meta() and found.reach == given.reach
    assert all(torch.equal(found.tensors()[name], t) for name, t in given.tensors().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radii": torch.zeros(2)}, "not positive"),
        ({"values": torch.ones(2, 3)}, "does not fit together"),
        ({"labels": ((1,),)}, "labels"),
        ({"keys": torch.full((2, WIDTH), torch.nan)}, "finite"),
    ],
)
def test_what_is_wrong_with_it_is_said(change, message):
    from dataclasses import replace

    with pytest.raises(EditError, match=message):
        replace(rows(clustered(2, 0), [1, 2]), **change).check()


def test_rows_of_another_width_are_refused():
    book = a_book()
    with pytest.raises(EditError, match="another model"):
        book.extend(rows(torch.ones(1, WIDTH + 1), [1]))
    assert book.size == 0
