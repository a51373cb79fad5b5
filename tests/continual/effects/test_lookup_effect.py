"""The arithmetic of a look-up, against a loop over its records in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from continual.anatomy import find_anatomy
from continual.base import PretrainedBase
from continual.effects import GatedEffect
from continual.effects.gated import Mount
from continual.effects.lookup import Lookup
from continual.effects.places import GatePlace
from continual.errors import EditError
from continual.model import EditedModel
from continual.passes.partial import logits_of
from continual.patches import pack, unpack
from continual.patches.lookup import LookupPatch
from continual.recheck.kept_tokens import PlaceQueries
from tests import tiny_language as language
from tests.continual.effects.decoding import check, decoded
from tests.tiny_models import tiny_inputs, tiny_model

KEY_WIDTH, WIDTH = 20, 12
PLACE = GatePlace.at(1, "inner")


def a_lookup() -> Lookup:
    modules = (nn.Identity(), nn.Identity())
    device = torch.device("cpu")
    return Lookup(Mount(PLACE, WIDTH, device, modules, is_site=False, key_width=KEY_WIDTH))


def clustered(count: int, seed: int) -> Tensor:
    """Directions of any length around a few centres, so that many are near each other."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, KEY_WIDTH, generator=draw)
    chosen = torch.randint(0, 5, (count,), generator=draw)
    spread = 0.05 + 0.3 * torch.rand(count, 1, generator=draw)
    points = centres[chosen] + spread * torch.randn(count, KEY_WIDTH, generator=draw)
    return points * (0.1 + 5 * torch.rand(count, 1, generator=draw))


def patches(seed: int, count: int = 40) -> list[LookupPatch]:
    """Patches of one to three rows, some of which have a key that was there before."""
    draw = torch.Generator().manual_seed(seed)
    keys, values = clustered(count, seed), torch.randn(count, WIDTH, generator=draw)
    keys[10], keys[20] = keys[3], 2.0 * keys[11]
    gates = 0.75 + 0.25 * torch.rand(count, generator=draw)
    made, first = [], 0
    while first < count:
        size = int(torch.randint(1, 4, (1,), generator=draw))
        part = slice(first, first + size)
        owners = (f"request {first}",) * len(keys[part])
        made.append(LookupPatch(PLACE, keys[part], values[part], gates[part], owners))
        first += size
    return made


def queries_near(seed: int) -> Tensor:
    near = clustered(40, seed).repeat_interleave(5, 0)
    noise = torch.randn(near.shape, generator=torch.Generator().manual_seed(seed + 1))
    queries = near + 0.1 * near.norm(dim=1, keepdim=True) * noise
    queries[7] = clustered(40, seed)[11]  # a key itself
    queries[8] = 0.0
    return queries


# --- the loop -------------------------------------------------------------------------------------


def cosine(one: list[float], other: list[float]) -> float:
    product = math.fsum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))


def looked_up(rows: list[LookupPatch], query: list[float]) -> int:
    """The record that a query opens, by a loop over all of them."""
    if not any(query):
        return -1
    best, winner, number = -2.0, -1, 0
    gates = []
    for patch in rows:
        for key, gate in zip(patch.keys.tolist(), patch.gates.tolist(), strict=True):
            gates.append(gate)
            found = cosine(query, key)
            if found > best + 1e-14 or abs(found - best) <= 1e-14:  # equal ones: the latest
                best, winner = max(best, found), number
            number += 1
    return winner if winner >= 0 and best > gates[winner] else -1


@pytest.mark.parametrize("seed", range(4))
def test_the_records_that_open_are_those_of_the_loop(seed):
    lookup, rows, queries = a_lookup(), [], queries_near(seed)
    opened = set()
    for patch in patches(seed):
        lookup.extend(patch)
        rows.append(patch)
        found = lookup.rows_of(queries).tolist()
        assert found == [looked_up(rows, query) for query in queries.tolist()]
        opened |= set(found)
    assert len(opened) > 10 and -1 in opened


def test_a_gate_of_one_opens_nowhere_and_the_output_is_the_very_same():
    lookup, (patch, *_) = a_lookup(), patches(0)
    lookup.extend(replace(patch, gates=torch.ones_like(patch.gates)))
    output = torch.randn(len(patch.keys), WIDTH)
    for scale in (1.0, 3.0, 1e-3):
        assert lookup.changed(scale * patch.keys, output) is output


def test_an_open_record_adds_its_value_and_a_silent_row_keeps_its_bits():
    lookup = a_lookup()
    for patch in patches(1):
        lookup.extend(patch)
    queries = queries_near(1).view(4, 50, KEY_WIDTH)
    output = torch.randn(4, 50, WIDTH)
    records = lookup.rows_of(queries.flatten(0, 1)).view(4, 50)
    found = lookup.changed(queries, output)
    assert torch.equal(found[records < 0], output[records < 0])
    is_open = records >= 0
    assert torch.equal(found[is_open], output[is_open] + lookup.values[records[is_open]])
    assert 20 < int(is_open.sum()) < 180
    with lookup.silenced():
        assert lookup.size == 0 and not lookup.reach().gates
        assert lookup.changed(queries, output) is output
    assert isinstance(lookup, GatedEffect) and lookup.beside == {"lookup": 40}


def test_an_answer_does_not_depend_on_what_else_is_asked():
    lookup = a_lookup()
    for patch in patches(2):
        lookup.extend(patch)
    queries = queries_near(2)
    together = lookup.rows_of(queries).tolist()
    assert together == [int(lookup.rows_of(query[None])) for query in queries]


def test_broken_queries_open_nothing():
    lookup, (patch, *_) = a_lookup(), patches(0)
    lookup.extend(replace(patch, gates=-torch.ones_like(patch.gates)))
    queries = torch.zeros(3, KEY_WIDTH)
    queries[1], queries[2, 0] = torch.nan, torch.inf
    assert lookup.rows_of(queries).tolist() == [-1, -1, -1]
    assert int(lookup.rows_of(-patch.keys[:1] + 0.01)) >= 0  # such a gate opens on all others


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_without_a_request_it_is_the_look_up_that_never_had_it(seed):
    rows, queries = patches(seed), queries_near(seed)
    for owner in {patch.owners[0] for patch in rows}:
        less, never = a_lookup(), a_lookup()
        for patch in rows:
            if (kept := patch.without(owner)) is not None:
                less.extend(kept)
            if owner not in patch.owners:
                never.extend(patch)
        for name in ("keys", "values", "gates"):
            assert torch.equal(getattr(less, name), getattr(never, name))
        assert torch.equal(less.rows_of(queries), never.rows_of(queries))


def test_going_back_and_joining_come_to_the_same_rows():
    lookup, whole, rows = a_lookup(), a_lookup(), patches(3)
    sizes = [0]
    for patch in rows:
        lookup.extend(patch)
        sizes.append(lookup.size)
    (joined,) = LookupPatch.joined(rows)
    joined.check()
    whole.extend(joined)
    assert torch.equal(whole.keys, lookup.keys) and torch.equal(whole.gates, lookup.gates)
    queries = queries_near(3)
    assert torch.equal(whole.rows_of(queries), lookup.rows_of(queries))
    for number in (9, 4, 0):
        lookup.truncate(sizes[number])
        assert lookup.size == sizes[number]
        expected = [looked_up(rows[:number], query) for query in queries.tolist()]
        assert lookup.rows_of(queries).tolist() == expected


@pytest.mark.parametrize("seed", range(4))
def test_a_query_whose_answer_changes_is_named_beforehand(seed):
    lookup, queries = a_lookup(), queries_near(seed)
    kept = PlaceQueries(queries)
    before = [(0, lookup.rows_of(queries))]
    changed = named = silenced = 0
    for patch in patches(seed):
        lookup.extend(patch)
        now = lookup.rows_of(queries)
        for size, earlier in before:
            differs, really = lookup.may_differ(kept, size), earlier != now
            assert not bool((really & ~differs).any())
            changed, named = changed + int(really.sum()), named + int(differs.sum())
            silenced += int(((earlier >= 0) & (now < 0)).sum())
        before.append((lookup.size, now))
    assert not bool(lookup.may_differ(kept, lookup.size).any())
    assert 0 < changed <= named < 0.9 * len(queries) * len(before) * (len(before) - 1) / 2
    assert silenced > 0  # a narrow record takes queries of a wide one over


# --- files ----------------------------------------------------------------------------------------


def test_it_comes_back_from_its_file_as_it_was():
    given = patches(0)[0]
    (found,) = unpack(*pack([given]))
    assert isinstance(found, LookupPatch) and found.owners == given.owners
    assert found.meta() == given.meta() and found.reach == given.reach
    assert all(torch.equal(found.tensors()[name], t) for name, t in given.tensors().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(2, KEY_WIDTH)}, "points nowhere"),
        ({"values": torch.ones(3, WIDTH)}, "does not fit together"),
        ({"gates": torch.full((2,), 1.5)}, "no cosine"),
        ({"gates": torch.full((2,), torch.nan)}, "finite"),
    ],
)
def test_what_is_wrong_with_it_is_said(change, message):
    rows = LookupPatch(PLACE, torch.ones(2, KEY_WIDTH), torch.ones(2, WIDTH), torch.zeros(2))
    rows.check()
    with pytest.raises(EditError, match=message):
        replace(rows, **change).check()


def test_rows_of_another_width_are_refused():
    lookup = a_lookup()
    with pytest.raises(EditError, match="another model"):
        lookup.extend(
            LookupPatch(PLACE, torch.ones(1, WIDTH), torch.ones(1, WIDTH), torch.zeros(1))
        )
    assert lookup.size == 0


# --- in a model -----------------------------------------------------------------------------------


def edited(name: str) -> EditedModel:
    model = tiny_model(name)
    return EditedModel(PretrainedBase(model, language.tokenizer(), find_anatomy(model), "base"))


@pytest.mark.parametrize("key", ["inner", "ffn"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "gpt-neox"])
def test_in_a_model_it_adds_where_a_token_s_key_matches_and_nowhere_else(name, key):
    with edited(name) as model, torch.no_grad():
        place, inputs = GatePlace.at(1, key), tiny_inputs(model.model)
        before = logits_of(model.model, inputs)
        down = model.anatomy.down_module(model.model, 1)
        with model.mount(place).shown() as queries:
            logits_of(model.model, inputs)
        flat = queries[0].reshape(-1, queries[0].shape[-1]).float()
        width = model.anatomy.width
        assert flat.shape[1] == (down.weight.numel() // width if key == "inner" else width)
        value = torch.randn(1, width)
        rows = LookupPatch(place, flat[[2]].clone(), value, torch.tensor([1.0 - 1e-6]))
        model.put([replace(rows, gates=torch.ones(1))])
        assert torch.equal(logits_of(model.model, inputs), before)
        model.put([rows])
        records = LookupPatch.of_model(model, place).rows_of(flat)
        expected = added_by_hand(model, inputs, (records >= 0).nonzero().flatten(), value)
        found = logits_of(model.model, inputs)
        assert int((records >= 0).sum()) == 1 and not torch.equal(found, before)
        assert torch.equal(found, expected)
        model.take_off(0)
        assert torch.equal(logits_of(model.model, inputs), before)


def added_by_hand(
    model: EditedModel, inputs: dict[str, Tensor], rows: Tensor, value: Tensor
) -> Tensor:
    """The logits of the bare model with a value added to ``down``'s output at some tokens."""

    def hook(_module: object, _args: object, output: Tensor) -> Tensor:
        flat = output.reshape(-1, output.shape[-1]).clone()
        flat[rows] += value
        return flat.view(output.shape)

    with model.bare():
        handle = model.anatomy.down_module(model.model, 1).register_forward_hook(hook)
        try:
            return logits_of(model.model, inputs)
        finally:
            handle.remove()


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_from_a_cache_is_plain_decoding(beams):
    model = edited("gpt2")
    draw = torch.Generator().manual_seed(0)
    with model, torch.no_grad(), model.mount(PLACE).shown() as queries:
        logits_of(model.model, {"input_ids": torch.randint(4, 30, (4, 8), generator=draw)})
    keys = queries[0].reshape(-1, queries[0].shape[-1])[::4].float().clone()
    values = 5 * torch.randn(len(keys), model.anatomy.width, generator=draw)
    patch = LookupPatch(PLACE, keys, values, torch.full((len(keys),), 0.3))
    check(decoded(model, patch, beams), beams)
