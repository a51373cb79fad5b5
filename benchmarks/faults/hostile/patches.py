"""Hostile patches: files that are none, and patches that no model can wear."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults import commands, processes, workload
from benchmarks.faults.findings import Finding
from benchmarks.faults.hostile.mutation import in_chunks, mutate
from benchmarks.faults.kills import scratch
from benchmarks.faults.processes import Say
from benchmarks.faults.workload import copied
from store import Draft, Store, StoreError, canonical
from store.blobs import BlobRef
from store.check import verify
from store.journal import Put, seq_key, text_key
from store.revisions import Revision, payload_of


def hostile_patches(count: int, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield files to put in the place of a patch."""
    good = _file({"a": _entry()}, bytes(16))
    yield "sound", good
    for name in ("../x", "/etc/passwd", "a/../../b", "", "\0", "a\nb", "x" * 5000, "\u202e"):
        yield f"a tensor called {name!r:.30}", _file({name: _entry()}, bytes(16))
    for what, value in (("NaN", float("nan")), ("Inf", float("inf"))):
        yield what, _file({"a": _entry()}, struct.pack("<4f", 0, value, 1, 2))
    twice = (
        b'{"a":' + json.dumps(_entry()).encode() + b',"a":' + json.dumps(_entry()).encode() + b"}"
    )
    yield "a repeated key", struct.pack("<Q", len(twice)) + twice + bytes(16)
    for what, entry in {
        "a wrong shape": _entry(shape=[5]),
        "a negative shape": _entry(shape=[-4]),
        "a huge shape": _entry(shape=[2**62, 4]),
        "an overflowing shape": _entry(shape=[2**32, 2**32, 2**32]),
        "no shape": {"dtype": "F32", "data_offsets": [0, 16]},
        "a strange type": _entry(dtype="F31"),
        "offsets beyond the end": _entry(data_offsets=[0, 1 << 40]),
        "offsets that go back": _entry(data_offsets=[16, 0]),
        "text for offsets": _entry(data_offsets=["0", "16"]),
        "a list": [],
        "a number": 1,
    }.items():
        yield what, _file({"a": entry}, bytes(16))
    for what, meta in {
        "a list for meta": [],
        "a number in meta": {"cedit": 1},
        "no JSON in meta": {"cedit": "{"},
        "a list in meta": {"cedit": "[]"},
        "deep meta": {"cedit": "[" * 50_000},
    }.items():
        yield what, _file({"__metadata__": meta, "a": _entry()}, bytes(16))
    for length in (0, 1, 7, 1 << 31, 1 << 63, (1 << 64) - 1, 200_000_000):
        yield f"a header of {length}", struct.pack("<Q", length) + good[8:]
    yield "empty", b""
    yield "a pickle", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00."
    deep = b'{"a":' * 100_000
    yield "a deep header", struct.pack("<Q", len(deep)) + deep
    for number in range(count):
        data = bytearray(good)
        for _ in range(draw.choice((1, 2, 8))):
            mutate(data, draw)
        yield f"mutation {number}", bytes(data)


def _entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}


def _file(header: Mapping[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_patch(path: Path, data: bytes) -> list[str]:
    """Return the faults of reading a patch whose digest is right and whose content is hostile."""
    with Store.open(path, writable=True) as store:
        ref = BlobRef(canonical.digest(data), len(data))
        file = store.blobs.path(ref.sha256)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        before = store.revision(f"@{store.length - 1}")
        draft = Draft("edit", before.id, "f", {"number": 0})
        payload = payload_of(draft, before.seq + 1, before.id, ref)
        revision = Revision.from_payload(payload)
        store.journal.write(store.history.changes(draft, revision, payload))
        problems = []
        try:
            tensors, _ = store.tensors(revision) or ({}, {})
            problems += [f"it has read {name!r}" for name in tensors if "/" in name or ".." in name]
            problems += [
                f"{name!r} is not finite" for name, t in tensors.items() if not _is_finite(t)
            ]
        except StoreError:
            if not [problem for problem in verify(store) if not problem.harmless]:
                problems.append("refused when it is read, and not named by verify")
        except Exception as error:
            problems.append(repr(error))
        _forget(store, revision)
        file.unlink()
    return problems


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.float().isfinite().all())


def _forget(store: Store, revision: Revision) -> None:
    store.journal.write(
        [
            Put("revisions", seq_key(revision.seq), None),
            Put("ids", revision.id.encode(), None),
            Put("refs", text_key("head"), canonical.dumps(store.base.id)),
        ]
    )


def of_patches(finding: Finding, mutations: int) -> None:
    """Read hostile files in the place of patches."""
    with scratch() as folder:
        path = folder / "store"
        workload.make(path)
        cases = list(hostile_patches(mutations, random.Random(0)))
        in_chunks(finding, cases, partial(read_patch, path))


def strange_drafts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield patches that a store takes, and that no model can wear."""
    part = {"kind": "neuron", "block": 3}
    for what, tensors, meta in (
        ("no parts", {}, {}),
        ("parts that are no list", {}, {"parts": 1}),
        ("a part that is no object", {}, {"parts": [1]}),
        ("an unknown kind", {}, {"parts": [{"kind": "magic"}]}),
        ("no tensors", {}, {"parts": [part]}),
        ("wrong shapes", {"0.keys": torch.ones(2, 3), "0.bias": torch.ones(9)}, {"parts": [part]}),
        (
            "another width",
            {"0.keys": torch.ones(1, 3), "0.bias": torch.ones(1), "0.values": torch.ones(1, 3)},
            {"parts": [part]},
        ),
        (
            "whole numbers",
            {name: torch.ones(1, 3, dtype=torch.long) for name in ("0.keys", "0.bias", "0.values")},
            {"parts": [part]},
        ),
        ("a low rank without factors", {}, {"parts": [{"kind": "low-rank"}]}),
    ):
        yield what, {"tensors": tensors or {"x": torch.ones(1)}, "patch_meta": meta}


def of_worn_patches(finding: Finding, is_short: bool) -> None:
    """Stand a model at a patch that it can't wear, at the command line."""
    with scratch() as folder:
        for what, patch in list(strange_drafts())[:: 9 if is_short else 1]:
            path = copied(commands.new_store(), folder / "store")
            heard = processes.run(partial(_commit_strange, path, patch))
            assert not heard.problems and not heard.error, heard
            for words in (("ask", "The capital of France is"), ("replay",), ("show", "head")):
                done = commands.run(*words, "--store", str(path))
                finding.count(f"{what}, {words[0]}", done.problems)


def _commit_strange(path: Path, patch: Mapping[str, Any], say: Say) -> None:
    with Store.open(path, writable=True) as store:
        store.commit(Draft("edit", store.head_id, "f1", {"requests": []}, **patch))
