"""Neurons at an inner block are seen: every probe is measured again, as from scratch."""

from __future__ import annotations

import pytest
import torch

from continual.effects import Reach
from continual.effects.places import HIDDEN, POOLED, GatePlace
from continual.errors import EditError
from continual.patches.neuron import NeuronPatch
from continual.session import Session
from tests.continual.recheck.conftest import from_scratch


def inner(gated: Session, subjects: tuple[str, ...] = ()) -> NeuronPatch:
    """Three strong neurons at the first block, which fire on some tokens and not on others."""
    width = gated.edited.anatomy.width
    draw = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(3, width, generator=draw) for _ in range(2))
    return NeuronPatch(0, keys, torch.full((3,), -0.5), 20.0 * values, subjects=subjects)


def test_the_ledger_follows_neurons_at_an_inner_block(gated):
    ledger = gated.run_state.ledger
    before, state = ledger.outcomes(), gated.edited.rows_state
    gated.edited.put([inner(gated)])
    last = gated.site.block
    assert gated.edited.reach.lowest(GatePlace.at(last)) == 0
    assert gated.edited.rows_state != state
    previewed = {entry.key for entry in ledger.would_break(["edit", "train"])}
    turned = ledger.advance()
    now = ledger.outcomes()
    assert now == from_scratch(gated)
    assert turned and now != before
    assert previewed == {key for key, right in turned.items() if not right}
    gated.edited.take_off(gated.edited.depth - 1)
    ledger.advance()
    assert ledger.outcomes() == before == from_scratch(gated)
    assert gated.edited.rows_state == state


def test_neurons_at_an_inner_block_cannot_ask_for_a_subject(gated):
    depth = gated.edited.depth
    with pytest.raises(EditError, match="block 0 ask for a subject"):
        gated.edited.put([inner(gated, ("a", "b", "c"))])
    assert gated.edited.depth == depth


def test_a_reach_is_joined_and_says_where_rows_move():
    at = {block: frozenset({GatePlace.at(block)}) for block in (1, 3)}
    joined = Reach(gates=at[3]) | Reach(blocks=frozenset({2, 5}), records=True)
    assert joined == Reach(at[3], frozenset({2, 5}), records=True)
    assert joined.lowest(GatePlace.at(5)) == 2
    assert Reach(gates=at[3]).lowest(GatePlace.at(3)) is None
    assert Reach(gates=at[1] | at[3]).lowest(GatePlace.at(3)) == 1
    assert not Reach(records=True).moves(GatePlace.at(3))


def test_values_behind_the_last_residual_sum_move_no_rows():
    behind = Reach(gates=frozenset({GatePlace.at(3, HIDDEN)}))
    assert not behind.moves(GatePlace.at(3)) and behind.lowest(GatePlace.at(4)) == 3
    remote = Reach(gates=frozenset({GatePlace.at(1, POOLED, 3)}))
    assert remote.lowest(GatePlace.at(3)) == 1
    assert not remote.is_rows_alone(GatePlace.at(3))
    assert Reach(gates=frozenset({GatePlace.at(3)})).is_rows_alone(GatePlace.at(3))
