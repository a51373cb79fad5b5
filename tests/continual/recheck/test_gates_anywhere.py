"""The ledger follows gates at every place of a model of each kind, as a full re-check would."""

from __future__ import annotations

from itertools import product

import torch

from continual.effects.places import FFN, KEYS, VALUES, GatePlace
from continual.errors import EditError
from continual.patches.neuron import NeuronPatch, neurons_at
from continual.session import Session
from tests.continual.recheck.conftest import from_scratch


def places(blocks: int) -> list[GatePlace]:
    """Every place of a model."""
    found = []
    for parts in product(range(blocks), KEYS, range(blocks), VALUES):
        try:
            found.append(GatePlace.at(*parts))
        except EditError:
            continue
    return found


def opening(session: Session, place: GatePlace, seed: int, share: float = 0.02) -> NeuronPatch:
    """Three strong neurons that open on about this share of the tokens of the probes."""
    site = session.site
    encodings = [entry.encoding for entry in session.standing.ledger.entries]
    with session.edited.mount(place).shown() as shown:
        site.judge_in_full(encodings)
    queries = torch.cat([q.reshape(-1, q.shape[-1]) for q in shown])
    draw = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(3, queries.shape[1], generator=draw) for _ in range(2))
    floors = (queries @ keys.T).quantile(1 - share, dim=0)
    return neurons_at(place, keys, -floors, 20.0 * values)


def test_the_ledger_follows_gates_at_every_place(gated):
    ledger, edited = gated.standing.ledger, gated.edited
    base, before, depth = edited.fingerprint, ledger.outcomes(), edited.depth
    turning = 0
    for seed, place in enumerate(places(edited.anatomy.block_count)):
        for step in range(2):  # the second one finds the place known
            edited.put([opening(gated, place, seed + 100 * step)])
            previewed = {entry.key for entry in ledger.would_break(["edit", "train"])}
            turned = ledger.advance()
            assert ledger.outcomes() == from_scratch(gated), place
            assert previewed == {key for key, right in turned.items() if not right}, place
            turning += bool(turned)
        if edited.depth > depth + 5:  # many places at once, then none
            edited.take_off(depth)
            ledger.advance()
            assert edited.fingerprint == base
            assert ledger.outcomes() == before == from_scratch(gated)
    assert turning > 5
    assert not ledger.remeasure()


def test_a_rollback_of_some_gates_is_followed(gated):
    ledger, edited = gated.standing.ledger, gated.edited
    last = gated.site.block
    for seed, place in enumerate([GatePlace.at(0), GatePlace.at(last, "hidden")]):
        edited.put([opening(gated, place, seed)])
    ledger.advance()
    between = ledger.outcomes()
    edited.put([opening(gated, GatePlace.at(0, "pooled", last, FFN), 7)])
    ledger.advance()
    edited.take_off(edited.depth - 1)
    edited.put([opening(gated, GatePlace.at(last), 8)])
    ledger.advance()
    assert ledger.outcomes() == from_scratch(gated)
    edited.take_off(edited.depth - 1)
    ledger.advance()
    assert ledger.outcomes() == between == from_scratch(gated)
