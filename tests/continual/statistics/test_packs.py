"""Statistics travel as a pack: to stores of the same base model, bit for bit, and to no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from continual.anatomy import find_anatomy
from continual.base import PretrainedBase
from continual.model import EditedModel
from continual.statistics import PackError, Passes, Statistics, StatisticsError
from store import Store
from tests import tiny_language as language

TEXTS = [" ".join(language.words()[2 + i : 12 + i]) for i in range(20)]
Make = Callable[..., Statistics]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes statistics of a model, each in a store of its own."""
    stores: list[Store] = []

    def made(name: str, fingerprint: str = "f0", model: str = "gpt2") -> Statistics:
        decoder = language.decoder(model)
        base = PretrainedBase(decoder, language.tokenizer(), find_anatomy(decoder), fingerprint)
        stores.append(Store.init(tmp_path / name, {"model": {"path": "m"}}, {}, fingerprint))
        return Statistics.of(stores[-1], EditedModel(base))

    yield made
    for store in stores:
        store.close()


@pytest.fixture
def pack(make: Make, tmp_path: Path) -> Path:
    collected = make("here")
    list(collected.collect(TEXTS, passes=Passes(piece_tokens_max=16)))
    collected.pack(tmp_path / "stats.safetensors", [0, 1])
    return tmp_path / "stats.safetensors"


def changed(pack: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """Another pack, with its header and its matrices changed."""
    content = pack.read_bytes()
    length = int.from_bytes(content[:8], "little")
    meta = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["cedit"])
    tensors = load_file(pack)
    change(meta, tensors)
    other = pack.with_name("changed.safetensors")
    save_file(tensors, other, metadata={"cedit": json.dumps(meta)})
    return other


def test_a_store_that_takes_a_pack_in_has_the_same_statistics(make: Make, pack: Path) -> None:
    here, there = make("again"), make("there")
    list(here.collect(TEXTS, passes=Passes(piece_tokens_max=16)))
    assert there.take_in(pack) == [0, 1]
    for block in (0, 1):
        mine, theirs = here.get(block), there.get(block)
        assert mine.digest == theirs.digest
        assert torch.equal(mine.second_moment, theirs.second_moment)
        assert (mine.count, mine.convergence) == (theirs.count, theirs.convergence)


def test_the_same_statistics_are_the_same_pack(make: Make, pack: Path, tmp_path: Path) -> None:
    there = make("there")
    there.take_in(pack)
    first = there.pack(tmp_path / "first", [1, 0])
    assert first == there.pack(tmp_path / "second", [0, 1])
    assert pack.read_bytes() == (tmp_path / "second").read_bytes()


def test_some_blocks_of_a_pack_are_taken(make: Make, pack: Path) -> None:
    there = make("there")
    assert there.take_in(pack, [1]) == [1]
    with pytest.raises(StatisticsError, match="block 0 are not in"):
        there.get(0)


def test_missing_statistics_are_not_packed(make: Make, tmp_path: Path) -> None:
    with pytest.raises(StatisticsError, match="block 0 are not in"):
        make("there").pack(tmp_path / "stats", [0])
    assert not (tmp_path / "stats").exists()


def test_a_pack_of_another_base_is_refused_by_name(make: Make, pack: Path) -> None:
    with pytest.raises(PackError, match=r"base model f0, and this store's is another-base"):
        make("there", fingerprint="another-base").take_in(pack)


def test_a_pack_without_a_block_is_refused(make: Make, pack: Path) -> None:
    one = changed(pack, lambda meta, _: meta["blocks"].pop())
    with pytest.raises(PackError, match="has the blocks 0, and not block 1"):
        make("there").take_in(one, [0, 1])


def test_a_later_format_is_refused(make: Make, pack: Path) -> None:
    later = changed(pack, lambda meta, _: meta.update(format=2))
    with pytest.raises(PackError, match="format 2, and 1 is read here"):
        make("there").take_in(later)


def _turn_a_number(meta: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["block-1"][3, 2] += 1e-9


def _put_nan(meta: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["block-1"][0, 0] = torch.nan


def _lose_a_matrix(meta: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    del tensors["block-1"]


def _name_another_site(meta: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    meta["blocks"][1]["meta"]["made_for"]["sites"] = ["elsewhere"]


@pytest.mark.parametrize("harm", [_turn_a_number, _put_nan, _lose_a_matrix, _name_another_site])
def test_a_damaged_pack_is_refused_before_anything_is_replaced(
    make: Make, pack: Path, harm: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
) -> None:
    there = make("there")
    with pytest.raises(PackError, match="name a pack that"):
        there.take_in(changed(pack, harm))
    for block in (0, 1):
        with pytest.raises(StatisticsError):
            there.get(block)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_no_pack_is_refused(make: Make, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(PackError, match="is no pack of key statistics"):
        make("there").take_in(tmp_path / "file")
