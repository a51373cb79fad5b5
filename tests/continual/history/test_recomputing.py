"""A step made again comes out bit for bit as it was, or it is said where it does not."""

from __future__ import annotations

import torch

from continual.history.rehearsing import difference, recompute
from continual.patches.neuron import NeuronPatch
from continual.requests import Request
from store import Draft
from tests.continual.conftest import reopened
from tests.continual.test_mixed_history import (
    apply_mixture,
    corrections,
    folder,  # noqa: F401
    fresh,  # noqa: F401
)
from tests.tiny_language import CAPITALS, capital, correction


def test_every_step_of_a_mixture_comes_out_the_same(fresh):  # noqa: F811
    apply_mixture(fresh)
    fresh.revert(corrections(7, 8)[0].id)
    steps = fresh.store.lineage("head")
    session = reopened(fresh)
    made = list(recompute(session, steps))
    assert [m.revision.seq for m in made] == [r.seq for r in steps if r.operation == "edit"]
    assert [m.difference for m in made if not m.is_same] == []
    late = list(recompute(session, steps[-3:]))  # from the middle
    assert late and all(m.is_same for m in late)
    session.close()


def test_batches_with_repeats_changes_of_mind_and_known_answers_come_out_the_same(knowing):
    records = [
        *[correction(c) for c in range(20, 24)],
        correction(22, CAPITALS[1]),
        correction(25, capital(25)),
        correction(20),
        {"prompt": "the capital of Erewhon is", "target_new": CAPITALS[1]},
        correction(20, CAPITALS[2]),
        correction(31, f"{CAPITALS[2]} {CAPITALS[3]}"),
    ]
    requests = [Request.from_json(record) for record in records]
    for settings in (knowing.settings(batch_size=4), knowing.settings(batch_size=3, repair=True)):
        list(knowing.apply_requests(requests, settings))
    made = list(recompute(knowing, knowing.store.lineage("head")))
    assert len(made) == 7
    assert [m.difference for m in made if not m.is_same] == []


def test_a_step_that_is_not_what_its_requests_come_to_is_said(knowing):
    requests = [Request.from_json(correction(c)) for c in range(20, 23)]
    list(knowing.apply_requests(requests, knowing.settings()))
    store, edited = knowing.store, knowing.edited
    step = store.revision("@2")
    (part,) = knowing.patches(step.patch)
    knowing.rollback("@1")
    forged = NeuronPatch(part.block, part.keys, part.bias, part.values + 1e-3, part.owners)
    edited.put([forged])
    tensors = {f"0.{name}": tensor for name, tensor in forged.tensors().items()}
    meta = {"parts": [{"kind": "neuron", "block": part.block, "owners": list(part.owners)}]}
    head = store.head_id
    store.commit(
        Draft("edit", head, edited.fingerprint, step.body, tensors=tensors, patch_meta=meta)
    )
    (good, bad) = list(recompute(knowing, store.lineage("head")))
    assert good.is_same
    assert "part 0 (neuron), values" in bad.difference and "by 0.001 at most" in bad.difference


def test_differences_are_named():
    one = NeuronPatch(0, torch.ones(2, 3), torch.ones(2), torch.ones(2, 3), ("a", "b"))
    assert difference([one], [one]) is None
    assert "0 parts instead of 1" in difference([one], [])
    other = NeuronPatch(1, one.keys, one.bias, one.values, one.owners)
    assert "part 0 (neuron) is another" in difference([one], [other])
    longer = NeuronPatch(0, torch.ones(3, 3), one.bias, one.values, one.owners)
    assert "keys: another shape, (3, 3)" in difference([one], [longer])
