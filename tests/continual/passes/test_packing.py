"""Attention among sequences in one row is what each of them has alone."""

from __future__ import annotations

import pytest
import torch

from continual.passes.packing import (
    ROWS,
    ROWS_MAX,
    GroupKeyValues,
    Packing,
    SequenceLengths,
    attend,
    filled_up,
)

CPU = torch.device("cpu")
SIZES = (3, 1, 7, 3, 2, 12)
BEFORE = (4, 0, 2, 9, 1, 0)
WIDTH = 5


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept_of(packing, heads):
    """What comes before each sequence, drawn, and the keys and values of it one by one."""
    rows = sum(BEFORE)
    keys, values = drawn(2, rows, heads, WIDTH, seed=1)
    firsts = torch.tensor([sum(BEFORE[:i]) for i in range(len(BEFORE))])
    kept = []
    for group, chosen in packing.members():
        ends = firsts[chosen] + torch.tensor(BEFORE)[chosen]
        places = ends[:, None] + torch.arange(-group.room, 0)
        kept.append(GroupKeyValues.of(keys, values, places.clamp(min=0), group))
    alone = [
        (keys[f : f + n], values[f : f + n]) for f, n in zip(firsts.tolist(), BEFORE, strict=True)
    ]
    return kept, alone


def slowly(query, key, value, before, scaling, window):
    """One sequence: [T, heads, d] of its queries, keys and values, head by head, key by key."""
    keys, values = torch.cat([before[0], key]), torch.cat([before[1], value])
    room, group = len(before[0]), query.shape[1] // key.shape[1]
    out = torch.zeros_like(query)
    for t in range(len(query)):
        first = 0 if window is None else max(0, room + t - window + 1)
        for h in range(query.shape[1]):
            seen = slice(first, room + t + 1)
            scores = (keys[seen, h // group] @ query[t, h]) * scaling
            out[t, h] = scores.softmax(0) @ values[seen, h // group]
    return out


@pytest.mark.parametrize("padded", [1.0, 1.6, 100.0])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("window", [None, 4])
def test_attention_and_its_gradients_are_those_of_each_sequence(padded, heads, window):
    packing = Packing.of(SequenceLengths(SIZES, BEFORE), padded, CPU)
    kept, alone = kept_of(packing, 2)
    row = [
        drawn(packing.width, count, WIDTH, seed=i).requires_grad_()
        for i, count in enumerate((heads, 2, 2))
    ]
    weights = drawn(packing.width, heads, WIDTH, seed=9)
    found = attend(*row, packing, kept, 0.3, window)
    used = packing.row(torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES)), inside())
    gradients = torch.autograd.grad((found * weights)[used].sum(), row)

    expected = torch.zeros_like(found)
    for i, size in enumerate(SIZES):
        places = packing.row(torch.full((size,), i), torch.arange(size))
        parts = [states[places] for states in row]
        expected = expected.index_add(0, places, slowly(*parts, alone[i], 0.3, window))
    own = torch.autograd.grad((expected * weights)[used].sum(), row)
    torch.testing.assert_close(found[used], expected[used])
    for gradient, wanted in zip(gradients, own, strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(gradient, wanted)


def inside():
    return torch.cat([torch.arange(size) for size in SIZES])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_off_by_no_more_than_rounding(dtype):
    packing = Packing.of(SequenceLengths(SIZES, BEFORE), 1.6, CPU)
    kept, _ = kept_of(packing, 2)
    row = [drawn(packing.width, 2, WIDTH, seed=i).requires_grad_() for i in range(3)]
    halves = [GroupKeyValues(one.keys.to(dtype), one.values.to(dtype)) for one in kept]
    short = [states.detach().to(dtype).requires_grad_() for states in row]
    found = [attend(*row, packing, kept, 0.3, None), attend(*short, packing, halves, 0.3, None)]
    assert found[1].dtype == dtype
    gradients = [
        torch.autograd.grad(out.double().square().sum(), given)
        for out, given in zip(found, (row, short), strict=True)
    ]
    pairs = [(found[1], found[0]), *zip(gradients[1], gradients[0], strict=True)]
    for rounded, exact in pairs:
        assert (rounded.double() - exact).norm() < 8 * torch.finfo(dtype).eps * exact.norm()


def test_a_pass_in_between_does_not_move_the_gradient():
    packing = Packing.of(SequenceLengths(SIZES, BEFORE), 1.6, CPU)
    kept, _ = kept_of(packing, 2)
    row = [drawn(packing.width, 2, WIDTH, seed=i).requires_grad_() for i in range(3)]
    found = attend(*row, packing, kept, 0.3, None)
    expected = torch.autograd.grad(found.square().sum(), row, retain_graph=True)
    attend(*(states.detach() + 1 for states in row), packing, kept, 0.3, None)
    for again, before in zip(torch.autograd.grad(found.square().sum(), row), expected, strict=True):
        assert torch.equal(again, before)


@pytest.mark.parametrize("chosen", [[5, 0], [1], [0, 2, 3, 4], [4, 3, 2, 1, 0]])
def test_some_sequences_attend_as_they_did_among_all(chosen):
    packing = Packing.of(SequenceLengths(SIZES, BEFORE), 2.0, CPU)
    kept, _ = kept_of(packing, 2)
    row = [drawn(packing.width, 2, WIDTH, seed=i) for i in range(3)]
    whole = attend(*row, packing, kept, 0.3, None)
    some, members = packing.select(chosen)
    chosen_kept, groups = [], iter(some.groups)
    for one, group, places in zip(kept, packing.groups, members, strict=True):
        if places:
            chosen_kept.append(one.select(torch.tensor(places), group, next(groups)))
    tokens = some.tokens(packing.firsts(chosen))
    found = attend(*(states[tokens] for states in row), some, chosen_kept, 0.3, None)
    torch.testing.assert_close(found[: some.rows], whole[tokens[: some.rows]])


def test_tokens_that_belong_to_no_sequence_fill_a_row_up():
    packing = Packing.of(SequenceLengths(SIZES, BEFORE), 2.0, CPU)
    assert packing.rows == sum(SIZES) < packing.width
    kept, _ = kept_of(packing, 2)
    row = [drawn(packing.width, 2, WIDTH, seed=i).requires_grad_() for i in range(3)]
    found = attend(*row, packing, kept, 0.3, None)
    assert not found[packing.rows :].any()
    for gradient in torch.autograd.grad(found.square().sum(), row):
        assert not gradient[packing.rows :].any()


@pytest.mark.parametrize("rows", [1, 16, 17, 511, 512, ROWS_MAX, ROWS_MAX + 1, 3 * ROWS_MAX + 5])
def test_rows_come_in_few_sizes(rows):
    size = filled_up(rows)
    assert size >= rows
    assert size in ROWS if rows <= ROWS_MAX else size % 256 == 0
