"""Blobs: the same tensors are the same bytes, and no bad byte becomes a tensor."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from store import canonical
from store.blobs import BlobRef, Blobs
from store.errors import IntegrityError, StoreError


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "patches")


def planted(blobs: Blobs, header: dict[str, object] | str, body: bytes = b"\0" * 8) -> BlobRef:
    """A file whose name fits its bytes, whatever these are."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    data = len(text).to_bytes(8, "little") + text + body
    ref = BlobRef(canonical.digest(data), len(data))
    blobs.path(ref.sha256).parent.mkdir(parents=True, exist_ok=True)
    blobs.path(ref.sha256).write_bytes(data)
    return ref


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_tensors_come_back_bit_for_bit(blobs, dtype):
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    ref = blobs.put({"block.3.keys": tensor, "empty": torch.zeros(0)}, {"site": "ffn", "n": [1]})
    tensors, meta = blobs.get(ref)
    assert torch.equal(tensors["block.3.keys"], tensor)
    assert tensors["block.3.keys"].dtype == dtype
    assert meta == {"site": "ffn", "n": [1]}
    assert list(blobs.digests()) == [ref.sha256]


def test_equal_content_has_one_address_whatever_its_order_and_layout(blobs):
    a, b = torch.rand(3, 5), torch.rand(4)
    first = blobs.put({"a": a, "b": b}, {"x": 1, "y": 2})
    second = blobs.put({"b": b, "a": a.T.contiguous().T}, {"y": 2, "x": 1})
    assert first == second


def test_a_patch_without_tensors_is_a_patch(blobs):
    assert blobs.get(blobs.put({}, {"texts": ["é"]})) == ({}, {"texts": ["é"]})


def test_tensors_that_share_memory_are_each_kept(blobs):
    whole = torch.rand(4)
    tensors, _ = blobs.get(blobs.put({"whole": whole, "half": whole[:2]}, {}))
    assert torch.equal(tensors["half"], whole[:2])


def test_a_blob_is_written_once_and_mended_if_damaged(blobs):
    ref = blobs.put({"a": torch.ones(2)}, {})
    path = blobs.path(ref.sha256)
    before = path.stat()
    blobs.put({"a": torch.ones(2)}, {})
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino
    path.write_bytes(b"damaged")
    blobs.put({"a": torch.ones(2)}, {})
    assert torch.equal(blobs.get(ref)[0]["a"], torch.ones(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_patch_that_is_not_finite_is_refused(blobs, bad, dtype):
    with pytest.raises(StoreError, match="'a' holds NaN or infinity"):
        blobs.put({"a": torch.tensor([0.0, bad]).to(dtype)}, {})
    assert not blobs.root.exists()


@pytest.mark.parametrize("name", ["", "../x", "a..b", "a/b", "a b", "a\0", "é", "a\n"])
def test_names_that_could_lead_elsewhere_are_refused_both_ways(blobs, name):
    with pytest.raises(StoreError, match="can't name a tensor"):
        blobs.put({name: torch.ones(1)}, {})
    ref = planted(blobs, {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    with pytest.raises(IntegrityError, match=ref.sha256):
        blobs.get(ref)


ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    "header",
    [
        f'{{"a":{ENTRY},"a":{ENTRY}}}',
        '{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
        f'{{"__metadata__":{{"cedit":"[]"}},"a":{ENTRY}}}',
        f'{{"__metadata__":{{"cedit":"{{"}},"a":{ENTRY}}}',
        f'{{"__metadata__":{{"cedit":1}},"a":{ENTRY}}}',
        f'{{"__metadata__":[],"a":{ENTRY}}}',
        "[]",
        "nonsense",
        "",
    ],
)
def test_a_malformed_file_with_the_right_digest_is_named(blobs, header):
    ref = planted(blobs, header)
    with pytest.raises(IntegrityError, match=ref.sha256):
        blobs.get(ref)


def test_infinity_with_the_right_digest_is_refused(blobs):
    ref = planted(blobs, f'{{"a":{ENTRY}}}', b"\0\0\x80\x7f" * 2)
    with pytest.raises(IntegrityError, match="infinity"):
        blobs.get(ref)


def test_a_reference_cannot_lead_out_of_the_folder(blobs):
    with pytest.raises(IntegrityError, match="not a digest"):
        blobs.get(BlobRef("../../../etc/passwd", 1))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_blob_that_is_there_already_is_synced_before_it_counts(blobs, monkeypatch):
    tensors = {"a": torch.ones(3)}
    path = blobs.path(blobs.put(tensors, {}).sha256)
    synced = []
    real = os.fsync

    def sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    blobs.put(tensors, {})
    assert synced == [path, path.parent]
