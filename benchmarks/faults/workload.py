"""Acts on a store while faults happen, and the state that must hold afterwards.

A plan is a list of acts. Everything of an act follows from its number and the acts before it, so
the state can be computed without a store: an `Expected` is a plain fold over the acknowledged acts;
the act that was under way may be there or not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.processes import Say
from continual.patches import pack
from continual.patches.dense import DensePatch
from store import Draft, Revision, Store, StoreError, gc
from store.check import verify

SETTINGS = {"model": {"path": "m"}, "run": {"seed": 0}}
BASE = {"model": "m"}
ROWS = 16  # a patch is a little over three sectors of a disk
BLOCK = {  # the tensors of a fine-tuned block of a small model: 176 KiB
    "transformer.h.1.attn.c_attn.weight": (64, 192),
    "transformer.h.1.mlp.c_fc.bias": (256,),
    "transformer.h.1.mlp.c_fc.weight": (64, 256),
    "transformer.h.1.mlp.c_proj.weight": (256, 64),
}
PLAN = (
    "step",
    "quarantine",
    "dense",
    "inline",
    "ledger",
    "rollback",
    "tag",
    "step",
    "cache",
    "quarantine",
    "step",
    "cache",
    "bare",
    "collect",
    "step",
    "queue",
)


@dataclass(frozen=True)
class Act:
    """One thing to do; `number` makes it different from all others of its kind."""

    kind: str
    number: int


def plan(length: int, kinds: Sequence[str] = PLAN) -> list[Act]:
    """Return `length` acts, the kinds in turn."""
    return [Act(kinds[number % len(kinds)], number) for number in range(length)]


def make(path: Path) -> None:
    """Make a store with its base revision, closed."""
    Store.init(path, SETTINGS, BASE, "f0").close()


def copied(template: Path, folder: Path) -> Path:
    """Return a fresh copy of a store."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)
    return folder


def perform(store: Store, act: Act) -> str | None:
    """Do one act; return the id of the revision that it made, or None."""
    revision = _ACTS[act.kind](store, act.number)
    return None if revision is None else revision.id


def run_plan(path: Path, acts: Sequence[Act], say: Say) -> None:
    """Open the store, do the acts, and acknowledge each when the store says that it is done."""
    with Store.open(path, writable=True) as store:
        say(opened=True)
        for act in acts:
            say(done=act.number, kind=act.kind, id=perform(store, act))


def tensors_of(number: int) -> dict[str, torch.Tensor]:
    """Return the patch of an act."""
    values = torch.arange(ROWS * ROWS, dtype=torch.float32).reshape(ROWS, ROWS)
    return {"keys": values + number, "bias": torch.full((ROWS,), float(number))}


def dense_of(number: int) -> DensePatch:
    """Return the patch of an act of fine-tuning: several large tensors."""
    draw = torch.Generator().manual_seed(number)
    deltas = {path: torch.randn(shape, generator=draw) for path, shape in BLOCK.items()}
    return DensePatch(deltas, dict.fromkeys(deltas, 1), (f"request-{number}",))


def patch_of(act: Act) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors and meta of an act's patch."""
    if act.kind == "dense":
        return pack([dense_of(act.number)])
    return tensors_of(act.number), {"number": act.number}


def draft_of(store: Store, number: int, **more: Any) -> Draft:
    """Return a step with something in every table."""
    identity = f"request-{number}"
    return Draft(
        operation="edit",
        parent=store.head_id,
        fingerprint=f"f{number}",
        body={
            "requests": [{"id": identity}],
            "quarantined": [record["line"] for record in store.quarantined()],
            "streams": {"news": {"position": number}},
            "number": number,
            "text": "x" * (number * 37 % 900),
        },
        patch_meta={"number": number},
        requests={identity: {"prompt": f"prompt {number}"}},
        subjects={identity: f"subject {number % 3}"},
        streams={"news": {"position": number}},
        ledger={"number": number},
        **more,
    )


def _step(store: Store, number: int) -> Revision:
    return _written_ahead(store, Act("step", number))


def _dense(store: Store, number: int) -> Revision:
    return _written_ahead(store, Act("dense", number))


def _written_ahead(store: Store, act: Act) -> Revision:
    written = store.write_ahead(*patch_of(act))
    return store.commit(draft_of(store, act.number, written=written))


def _inline(store: Store, number: int) -> Revision:
    return store.commit(draft_of(store, number, tensors=tensors_of(number)))


def _bare(store: Store, number: int) -> Revision:
    return store.commit(draft_of(store, number))


def _rollback(store: Store, number: int) -> Revision:
    target = store.revision("head~1" if store.head.parent else "head").id
    draft = Draft("rollback", store.head_id, f"f{number}", {"number": number}, head=target)
    return store.commit(draft)


def _tag(store: Store, number: int) -> None:
    store.tag(f"v{number}", "head")


def _ledger(store: Store, number: int) -> None:
    store.record_ledger(store.length - 1, {"number": number})


def _quarantine(store: Store, number: int) -> None:
    place = {"stream": "news", "position": number, "rolling": "00"}
    store.quarantine([{**place, "line": number, "raw": "y" * 300}])


def _cache(store: Store, number: int) -> None:
    store.put_cached("statistics/block-0", tensors_of(number), {"number": number})


def _queue(store: Store, number: int) -> None:
    item = {"number": number, "text": "z" * (number * 53 % 700)}
    store.record_queue({f"item/{number:09}": item, "last": {"number": number}})


def _collect(store: Store, number: int) -> None:
    store.blobs.put({"orphan": torch.full((ROWS,), float(number))}, {})
    gc.collect(store, gc.find(store))


_ACTS: Mapping[str, Any] = {
    "step": _step,
    "dense": _dense,
    "inline": _inline,
    "bare": _bare,
    "rollback": _rollback,
    "tag": _tag,
    "ledger": _ledger,
    "quarantine": _quarantine,
    "cache": _cache,
    "collect": _collect,
    "queue": _queue,
}
STEPS = frozenset({"step", "dense", "inline", "bare"})
REVISIONS = STEPS | {"rollback"}


# -- the expected state


@dataclass
class Expected:
    """The state that acts lead to, in plain Python."""

    parents: list[int | None] = field(default_factory=lambda: [None])  # by sequence number
    numbers: list[int | None] = field(default_factory=lambda: [None])  # of the acts
    patched: dict[int, Act] = field(default_factory=dict)  # by sequence number
    ledger: dict[int, int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)  # → sequence
    quarantined: list[int] = field(default_factory=list)
    queued: list[int] = field(default_factory=list)
    cached: int | None = None
    position: int | None = None
    head: int = 0

    def take(self, act: Act) -> None:
        """Have one more act done."""
        if act.kind in REVISIONS:
            self._revision(act)
        elif act.kind == "tag":
            self.tags[f"v{act.number}"] = self.head
        elif act.kind == "ledger":
            self.ledger[len(self.numbers) - 1] = act.number
        elif act.kind == "quarantine":
            self.quarantined.append(act.number)
        elif act.kind == "queue":
            self.queued.append(act.number)
        elif act.kind == "cache":
            self.cached = act.number  # a collection takes only files that are nobody's

    def _revision(self, act: Act) -> None:
        seq = len(self.numbers)
        parent = self.head
        self.parents.append(parent)
        self.numbers.append(act.number)
        if act.kind == "rollback":
            before = self.parents[parent]
            self.head = parent if before is None else before
            return
        self.head, self.position, self.ledger[seq] = seq, act.number, act.number
        if act.kind != "bare":
            self.patched[seq] = act


def expected_after(acts: Sequence[Act]) -> Expected:
    """Return the state after these acts."""
    state = Expected()
    for act in acts:
        state.take(act)
    return state


def differences(store: Store, state: Expected) -> list[str]:
    """Return the ways in which a store differs from its expected state."""
    return list(_differences(store, state))


def _differences(store: Store, state: Expected) -> Iterator[str]:
    revisions = list(store.revisions())
    numbers = [revision.body.get("number") for revision in revisions]
    if numbers != state.numbers:
        yield f"the revisions are {numbers}, not {state.numbers}"
        return
    seqs = {revision.id: revision.seq for revision in revisions}
    parents = [seqs[one.parent] if one.parent else None for one in revisions]
    if parents != state.parents:
        yield f"the parents are {parents}, not {state.parents}"
    if store.head.seq != state.head:
        yield f"head is @{store.head.seq}, not @{state.head}"
    if {name: seqs[identity] for name, identity in store.tags().items()} != state.tags:
        yield f"the tags are {store.tags()}"
    position = (store.stream("news") or {}).get("position")
    if position != state.position:
        yield f"the stream is at {position}, not {state.position}"
    yield from _differing_entries(store, revisions, state)
    quarantined = [record["position"] for record in store.quarantined()]
    if quarantined != state.quarantined:
        yield f"in quarantine are {quarantined}, not {state.quarantined}"
    queued = [record["number"] for _, record in store.queue_entries("item/")]
    last = (store.queue_entry("last") or {}).get("number")
    if queued != state.queued or last != (queued[-1] if queued else None):
        yield f"in the queue are {queued}, the last {last}, not {state.queued}"
    cached = store.cached("statistics/block-0")
    if (cached and cached.meta["number"]) != state.cached:
        yield f"cached is {cached and cached.meta}, not {state.cached}"


def _differing_entries(
    store: Store, revisions: Sequence[Revision], state: Expected
) -> Iterator[str]:
    for revision in revisions[1:]:
        seq, number = revision.seq, state.numbers[revision.seq]
        ledger = (store.ledger(seq) or {}).get("number")
        if ledger != state.ledger.get(seq):
            yield f"the ledger of @{seq} is {ledger}"
        if revision.operation == "edit" and store.request(f"request-{number}") != {
            "prompt": f"prompt {number}"
        }:
            yield f"the request of @{seq} differs"
        found = store.tensors(revision)
        if (found is not None) != (seq in state.patched):
            yield f"@{seq} has {'a' if found else 'no'} patch"
        elif found is not None and not _is_patch(found, state.patched[seq]):
            yield f"the patch of @{seq} differs"


def _is_patch(found: tuple[Mapping[str, torch.Tensor], Mapping[str, Any]], act: Act) -> bool:
    tensors, meta = patch_of(act)
    return (
        found[1] == meta
        and found[0].keys() == tensors.keys()
        and all(torch.equal(found[0][name], tensor) for name, tensor in tensors.items())
    )


def faults_of(path: Path, acts: Sequence[Act], done: int, goes_on: bool = True) -> list[str]:
    """Return the faults of a store after `done` acts of a plan were acknowledged.

    The next act may be there, whole, or not. With `goes_on` the missing acts are then done, the
    store is opened again, and all must be there.
    """
    try:
        with Store.open(path, writable=True) as store:
            found, at = standing(store, acts, done)
            found += [f"{p.object}: {p.problem}" for p in verify(store) if not p.harmless]
            if found or not goes_on:
                return found
            for act in acts[at : at + 2]:
                perform(store, act)
        with Store.open(path) as store:
            at = min(len(acts), at + 2)
            return [f"gone on: {one}" for one in differences(store, expected_after(acts[:at]))]
    except StoreError as error:
        return [f"{type(error).__name__}: {error}"]


def standing(store: Store, acts: Sequence[Act], done: int) -> tuple[list[str], int]:
    """Return the faults of a store, and the number of acts after which it stands."""
    first = differences(store, expected_after(acts[:done]))
    if not first:
        return [], done
    if done < len(acts) and not differences(store, expected_after(acts[: done + 1])):
        return [], done + 1
    return first, done
