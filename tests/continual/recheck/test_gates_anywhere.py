"""The ledger follows gates at every place of a model of each kind, as a full re-check would."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress, product

import torch
from torch import Tensor

from continual.effects import KeptQueries, Reach
from continual.effects.gated import Mount
from continual.effects.places import FFN, KEYS, VALUES, GatePlace
from continual.errors import EditError
from continual.model import EditedModel
from continual.patches.neuron import NeuronPatch, neurons_at
from continual.session import Session
from continual.site.tokens import token_queries
from continual.tasks import Encoding
from tests.continual.recheck.conftest import from_scratch

LOOSE = 0.03  # how far above a score its bound may be, as a share of both lengths


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
    encodings = [entry.encoding for entry in session.run_state.ledger.entries]
    with session.edited.mount(place).shown() as shown:
        site.judge_in_full(encodings)
    queries = torch.cat([q.reshape(-1, q.shape[-1]) for q in shown])
    draw = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(3, queries.shape[1], generator=draw) for _ in range(2))
    floors = (queries @ keys.T).quantile(1 - share, dim=0)
    return neurons_at(place, keys, -floors, 20.0 * values)


def test_the_ledger_follows_gates_at_every_place(gated):
    ledger, edited = gated.run_state.ledger, gated.edited
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
    ledger, edited = gated.run_state.ledger, gated.edited
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


def test_only_probes_with_a_token_that_opens_a_gate_are_run_again(gated, monkeypatch):
    ledger, edited, site = gated.run_state.ledger, gated.edited, gated.site
    place = GatePlace.at(0, "hidden")
    edited.put([opening(gated, place, 1)])
    ledger.advance()  # the place is known now
    patch = opening(gated, place, 2, share=0.01)
    encodings = [entry.encoding for entry in ledger.entries]
    queries = token_queries(site, encodings, [place])[place]
    opens = [opened(q, patch, loose=0.0) for q in queries]
    may_open = [opened(q, patch, LOOSE) for q in queries]
    asked: list[Encoding] = []
    whole = site.rows_in_passes
    monkeypatch.setattr(site, "rows_in_passes", lambda e: asked.extend(e) or whole(e))
    edited.put([patch])
    ledger.advance()
    assert ledger.outcomes() == from_scratch(gated)
    assert any(opens) and not all(opens)
    assert set(compress(encodings, opens)) <= set(asked) <= set(compress(encodings, may_open))
    assert len(asked) < len(encodings)


def opened(queries: Tensor, patch: NeuronPatch, loose: float) -> bool:
    """Whether a token comes as near to opening a neuron as this share of both lengths."""
    q, k = queries.double(), patch.keys.double()
    slack = loose * q.norm(dim=1)[:, None] * k.norm(dim=1)
    return bool((q @ k.T + patch.bias.double() + slack > 0).any())


def test_an_effect_of_another_kind_is_followed_by_what_it_says_may_differ(gated):
    """A codebook whose later entry takes over a part of an earlier one's queries."""
    ledger, edited = gated.run_state.ledger, gated.edited
    book = edited.gated("codebook", BOOK, Codebook)
    encodings = [entry.encoding for entry in ledger.entries]
    queries = torch.cat(token_queries(gated.site, encodings, [book.place])[book.place])
    draw = torch.Generator().manual_seed(5)
    chosen = torch.randperm(len(queries), generator=draw)[:4].tolist()
    radius = float(torch.cdist(queries, queries).quantile(0.3))
    before = ledger.outcomes()
    for token in chosen:
        value = 50.0 * torch.randn(queries.shape[1], generator=draw)
        edited.put([BookEntry(queries[token], value, radius)])
        ledger.advance()
        assert ledger.outcomes() == from_scratch(gated)
    assert ledger.outcomes() != before


BOOK = GatePlace.at(0, "hidden")


@dataclass(frozen=True)
class BookEntry:
    """A patch with one entry of a codebook."""

    key: Tensor
    value: Tensor
    radius: float
    kind = "codebook"

    def meta(self) -> dict[str, float]:
        return {"radius": self.radius}

    def put_on(self, model: EditedModel) -> list[Tensor]:
        model.gated("codebook", BOOK, Codebook).add(self.key, self.value, self.radius)
        return [self.key, self.value]


class Codebook:
    """Entries with a radius; the nearest one that is near enough adds its value."""

    def __init__(self, mount: Mount) -> None:
        self._mount, self.place = mount, mount.place
        self._entries: list[tuple[Tensor, Tensor, float]] = []

    def add(self, key: Tensor, value: Tensor, radius: float) -> None:
        self._entries.append((key, value, radius))

    @property
    def size(self) -> int:
        return len(self._entries)

    def attached(self):
        return self._mount.attached(lambda: self.size > 0, self._changed)

    def _changed(self, queries: Tensor, output: Tensor) -> Tensor:
        keys, values, radii = (list(part) for part in zip(*self._entries, strict=True))
        rows = queries.reshape(-1, queries.shape[-1])
        distances = torch.cdist(rows, torch.stack(keys))
        nearest = distances.argmin(1)
        is_near = distances.amin(1) <= torch.tensor(radii)[nearest]
        added = torch.stack(values)[nearest] * is_near.unsqueeze(-1)
        return output + added.view(output.shape) if bool(is_near.any()) else output

    def may_differ(self, queries: KeptQueries, first: int) -> Tensor:
        found = torch.zeros(len(queries), dtype=torch.bool)
        radius = max(radius for _, _, radius in self._entries)
        for key, _, _ in self._entries[first:]:  # nearer to it than any entry reaches
            bound = queries.bounds(key[None])[0]
            found |= queries.squares - 2 * bound + key.square().sum() <= (radius + 0.01) ** 2
        return found

    def reach(self, first: int = 0) -> Reach:
        return Reach(gates=frozenset({self.place} if self.size > first else ()))

    def truncate(self, size: int) -> None:
        del self._entries[size:]

    def require_way_back(self, size: int) -> None: ...

    def settle(self) -> None: ...

    @contextmanager
    def silenced(self):
        entries, self._entries = self._entries, []
        try:
            yield
        finally:
            self._entries = entries
