"""Key statistics are the plain second moments of the keys, however they were batched or stopped."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.anatomy import find_anatomy
from continual.atlas.texts import AtlasTexts
from continual.base import PretrainedBase
from continual.errors import CeditError, ModelError
from continual.model import EditedModel
from continual.patches.neuron import NeuronPatch
from continual.statistics import KeyStatistics, Passes, Statistics, StatisticsError, moments
from continual.statistics import kept as keeping
from store import Store
from store.errors import StoreFull
from tests import tiny_language as language

SMALL = Passes(piece_tokens_max=16, pass_tokens_max=60, window_tokens=100, checkpoint_seconds=0.0)
"""Many pieces, passes and windows for little text, and a checkpoint behind every window."""

Make = Callable[..., Statistics]


def texts(count: int = 60, seed: int = 0) -> list[str]:
    """Documents of 1 to 40 words, with one that is longer than the model can read."""
    rng = random.Random(seed)
    words = language.words()[2:]
    found = [" ".join(rng.choices(words, k=rng.randint(1, 40))) for _ in range(count - 1)]
    return [*found[:20], " ".join(rng.choices(words, k=130)), *found[20:]]


def edited_model(model: Any, fingerprint: str = "f0") -> EditedModel:
    return EditedModel(
        PretrainedBase(model, language.tokenizer(), find_anatomy(model), fingerprint)
    )


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes statistics, each in a store of its own unless a name is given twice."""
    stores: dict[str, Store] = {}

    def made(
        name: str = "store", model: str | Any = "gpt2", fingerprint: str = "f0", path: str = "m"
    ) -> Statistics:
        if name not in stores:
            settings = {"model": {"path": path}}
            stores[name] = Store.init(tmp_path / name, settings, {}, fingerprint)
        decoder = language.decoder(model) if isinstance(model, str) else model
        return Statistics.of(stores[name], edited_model(decoder, fingerprint))

    yield made
    for store in stores.values():
        store.close()


def collect(found: Statistics, documents: Iterable[str], **more: Any) -> list[Any]:
    return list(found.collect(documents, **{"passes": SMALL, **more}))


def plain_keys(model: Any, documents: Sequence[str], block: int, size: int) -> list[Tensor]:
    """The keys [n, d_ff] of every piece, by a hook of our own on one piece at a time."""
    seen: list[Tensor] = []
    down = find_anatomy(model).down_module(model, block)
    handle = down.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    read = language.tokenizer()
    for document in documents:
        ids = read(document)["input_ids"]
        for first in range(0, len(ids), size):
            with torch.no_grad():
                model(input_ids=torch.tensor([ids[first : first + size]]))
    handle.remove()
    return [keys.reshape(-1, keys.shape[-1]) for keys in seen]


def plain_moment(keys: Iterable[Tensor]) -> Tensor:
    """The mean of k kᵀ, token by token, in float64."""
    rows = [row.double() for piece in keys for row in piece]
    total = torch.zeros(len(rows[0]), len(rows[0]), dtype=torch.float64)
    for row in rows:
        total += torch.outer(row, row)
    return total / len(rows)


def error_of(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def interrupted(run: Iterator[Any], passes: int) -> None:
    """The first passes of a run that then ends as a killed one does."""
    assert len(list(islice(run, passes))) == passes
    del run


# --- what they are --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_they_are_the_mean_of_all_keys_token_by_token(make: Make, name: str) -> None:
    found = make(model=name)
    collect(found, texts())
    model = language.decoder(name)
    for block in (0, 1):
        keys = plain_keys(model, texts(), block, SMALL.piece_tokens_max)
        kept = found.get(block)
        assert kept.block == block
        assert kept.count == sum(map(len, keys))
        assert kept.second_moment.dtype == torch.float64
        assert error_of(kept.second_moment, plain_moment(keys)) <= 1e-6


def test_a_piece_is_no_longer_than_what_the_model_reads(make: Make) -> None:
    found = make()
    collect(found, texts(), passes=Passes())
    keys = plain_keys(language.decoder(), texts(), 1, language.POSITIONS)
    assert error_of(found.get(1).second_moment, plain_moment(keys)) <= 1e-6


def test_padding_has_no_part_in_them(make: Make) -> None:
    alone, padded = make("alone"), make("padded")
    short, long = "is", " ".join(["people"] * 40)
    collect(alone, [short, short, long], passes=Passes(pass_tokens_max=1))
    collect(padded, [short, long, short], passes=Passes())  # even: is, is; odd: people …
    together = make("together")
    collect(together, [short, "is", long], passes=Passes())  # even: is and people … in one pass
    assert together.get(0).count == alone.get(0).count == padded.get(0).count == 42
    assert error_of(together.get(0).second_moment, alone.get(0).second_moment) <= 1e-6


def test_they_are_symmetric_to_the_last_bit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, tiled = make("whole"), make("tiled")
    collect(whole, texts())
    monkeypatch.setattr(moments, "_TILE", 37)
    collect(tiled, texts())
    moment = tiled.get(0).second_moment
    assert torch.equal(moment, moment.T)
    assert error_of(moment, whole.get(0).second_moment) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keys_in_half_precision_are_summed_in_double(make: Make, dtype: torch.dtype) -> None:
    model = language.decoder().to(dtype)
    found = make(model=model)
    collect(found, texts(), passes=Passes(piece_tokens_max=16, pass_tokens_max=1))
    keys = plain_keys(model, texts(), 1, 16)
    assert error_of(found.get(1).second_moment, plain_moment(keys)) <= 1e-12


def test_patches_on_the_model_have_no_part_in_them_and_stay_on(make: Make) -> None:
    bare, patched = make("bare"), make("patched")
    collect(bare, texts())
    edited = patched._edited
    ones = torch.ones(1, edited.anatomy.width)
    edited.put([NeuronPatch(0, ones, torch.ones(1), 5 * ones)])
    with edited:
        collect(patched, texts())
        state = edited.fingerprint
        assert edited.bank(0).size == 1
    assert state != edited.base.fingerprint
    assert patched.get(1).digest == bare.get(1).digest


def test_the_model_is_left_without_hooks(make: Make) -> None:
    found = make()
    interrupted(found.collect(texts(), passes=SMALL), 2)
    assert not any(m._forward_hooks for m in found._edited.model.modules())


def test_convergence_is_the_distance_between_every_other_piece(make: Make) -> None:
    found = make()
    collect(found, texts())
    pieces = plain_keys(language.decoder(), texts(), 0, SMALL.piece_tokens_max)
    even, odd = plain_moment(pieces[0::2]), plain_moment(pieces[1::2])
    expected = (even - odd).norm() / plain_moment(pieces).norm()
    assert found.get(0).convergence == pytest.approx(expected.item(), rel=1e-5)


def test_convergence_is_nought_for_the_same_twice_and_one_for_a_single_piece(make: Make) -> None:
    twice, once = make("twice"), make("once")
    collect(twice, [texts()[0]] * 2, passes=Passes(pass_tokens_max=1))
    collect(once, [language.ask(0)])
    assert twice.get(0).convergence == pytest.approx(0.0, abs=1e-12)
    assert once.get(0).convergence == pytest.approx(1.0, rel=1e-12)


def test_only_the_blocks_named_are_collected_and_come_out_the_same(make: Make) -> None:
    every, one = make("every"), make("one")
    collect(every, texts())
    collect(one, texts(), blocks=[1])
    assert one.get(1).digest == every.get(1).digest
    with pytest.raises(StatisticsError, match="block 0"):
        one.get(0)


def test_exactly_the_tokens_wanted_are_seen(make: Make) -> None:
    found = make()
    steps = collect(found, texts(), tokens_max=333)
    assert found.get(0).count == steps[-1].tokens == 333
    ids = [language.tokenizer()(text)["input_ids"] for text in texts()]
    every = [token for document in ids for token in document]
    assert len(every) > 333
    collect(found, texts(), tokens_max=10**9)
    assert found.get(0).count == len(every)


def test_statistics_that_are_not_finite_cannot_be() -> None:
    with pytest.raises(StatisticsError, match="block 3 hold NaN"):
        KeyStatistics(3, 1, torch.tensor([[float("inf")]]), 0.0, Path("x"), "d")


def test_keys_that_overflow_are_named_and_nothing_is_kept(make: Make) -> None:
    model = language.decoder()
    with torch.no_grad():
        find_anatomy(model).up_modules(model, 1)[0].weight[0, 0] = float("inf")
    found = make(model=model)
    with pytest.raises(ModelError, match=r"block 1 hold NaN.*--dtype"):
        collect(found, texts())
    with pytest.raises(StatisticsError):
        found.get(0)


# --- streaming ------------------------------------------------------------------------------------


class Text(str):
    """A text that can be watched by a weak reference."""


def test_documents_are_never_held_beyond_the_one_that_is_read(make: Make) -> None:
    alive: weakref.WeakSet[Text] = weakref.WeakSet()
    most = 0

    class Documents:
        def __iter__(self) -> Iterator[str]:
            nonlocal most
            for text in texts(200):
                watched = Text(text)
                alive.add(watched)
                most = max(most, len({id(one) for one in alive}))
                yield watched
                del watched

    gc.collect()
    collect(make(), Documents())
    assert 1 <= most <= 3


def test_text_is_read_one_window_ahead_at_most(make: Make) -> None:
    read: list[int] = []

    class Documents:
        def __iter__(self) -> Iterator[str]:
            for text in texts(200):
                read.append(len(text.split()))
                yield text

    steps = iter(make().collect(Documents(), passes=SMALL))
    assert read == []
    for step in steps:
        assert sum(read) <= step.tokens + SMALL.window_tokens + max(read)


def test_a_pass_is_no_larger_than_allowed(make: Make) -> None:
    sizes: list[int] = []
    model = language.decoder()
    watch = model.get_input_embeddings().register_forward_hook(
        lambda _, args, __: sizes.append(args[0].numel())
    )
    collect(make(model=model), texts())
    watch.remove()
    assert max(sizes) <= SMALL.pass_tokens_max
    assert len(sizes) >= sum(len(text.split()) for text in texts()) / SMALL.pass_tokens_max


def test_an_iterator_cannot_be_read_twice_and_is_refused(make: Make) -> None:
    with pytest.raises(TypeError, match="no iterator"):
        make().collect(iter(texts()))


def test_a_text_without_tokens_is_an_error(make: Make) -> None:
    with pytest.raises(CeditError, match="no tokens"):
        collect(make(), [])


def test_a_block_that_the_model_has_not_is_named(make: Make) -> None:
    for use in (lambda s: s.get(2), lambda s: s.collect(texts(), [0, 2])):
        with pytest.raises(ModelError, match="no block 2: choose of 0 to 1"):
            use(make())


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [1, 9, 20, 33])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_interrupted_run_ends_with_the_same_bits(make: Make, name: str, passes: int) -> None:
    whole = make("whole", name)
    assert len(collect(whole, texts())) > 33
    interrupted(make("parts", name).collect(texts(), passes=SMALL), passes)
    parts, notes = make("parts", name), []
    steps = collect(parts, texts(), on_change=notes.append)
    assert notes == []
    assert [parts.get(b).digest for b in (0, 1)] == [whole.get(b).digest for b in (0, 1)]
    assert (steps[0].tokens > 100) == (passes > 5)  # begun behind the first window, or before it


def test_a_run_interrupted_again_and_again_gets_there(make: Make) -> None:
    whole = make("whole")
    collect(whole, texts())
    for _ in range(100):
        run = make("parts").collect(texts(), passes=SMALL)
        if len(list(islice(run, 7))) < 7:
            break
        del run
    assert make("parts").get(0).digest == whole.get(0).digest


def test_a_run_that_fails_in_a_document_goes_on_before_it(make: Make) -> None:
    whole = make("whole")
    collect(whole, texts())

    class Torn:
        def __iter__(self) -> Iterator[str]:
            yield from texts()[:50]
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        collect(make("parts"), Torn())
    parts = make("parts")
    assert collect(parts, texts())[0].documents >= 20
    assert parts.get(0).digest == whole.get(0).digest


def test_what_an_interrupted_run_left_is_gone_when_it_is_done(make: Make) -> None:
    interrupted(make().collect(texts(), passes=SMALL), 20)
    found = make()
    assert found._store.cached("statistics/partial") is not None
    collect(found, texts())
    assert found._store.cached("statistics/partial") is None


def changed_at(place: int) -> list[str]:
    return [*texts()[:place], "king", *texts()[place + 1 :]]


@pytest.mark.parametrize("other", [changed_at(0), changed_at(8), texts()[:4], texts()[1:]])
def test_a_text_that_has_changed_is_noticed_and_read_from_its_beginning(
    make: Make, other: list[str]
) -> None:
    fresh = make("fresh")
    collect(fresh, other)
    interrupted(make("parts").collect(texts(), passes=SMALL), 20)
    parts, notes = make("parts"), []
    collect(parts, other, on_change=notes.append)
    assert len(notes) == 1
    assert "not the one that the interrupted run has read" in notes[0]
    assert parts.get(0).digest == fresh.get(0).digest


def test_text_that_was_not_read_yet_may_change(make: Make) -> None:
    fresh, notes = make("fresh"), []
    collect(fresh, changed_at(59))
    interrupted(make("parts").collect(texts(), passes=SMALL), 20)
    parts = make("parts")
    collect(parts, changed_at(59), on_change=notes.append)
    assert notes == []
    assert parts.get(0).digest == fresh.get(0).digest


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": [0]},
        {"tokens_max": 110},
        {"passes": Passes(piece_tokens_max=15, window_tokens=100)},
    ],
)
def test_another_run_does_not_go_on_with_it_and_says_so(make: Make, change: Any) -> None:
    fresh, notes = make("fresh"), []
    collect(fresh, texts(), **change)
    interrupted(make("parts").collect(texts(), passes=SMALL), 20)
    parts = make("parts")
    collect(parts, texts(), on_change=notes.append, **change)
    assert len(notes) == 1
    assert "given up" in notes[0]
    assert parts.get(0).digest == fresh.get(0).digest


def test_a_limit_that_comes_later_is_kept_to(make: Make) -> None:
    fresh = make("fresh")
    collect(fresh, texts(), tokens_max=700)
    interrupted(make("parts").collect(texts(), passes=SMALL), 20)
    parts = make("parts")
    assert collect(parts, texts(), tokens_max=700)[0].tokens > 100
    assert parts.get(1).digest == fresh.get(1).digest


@pytest.mark.parametrize("tokens", [333, 360, 400, 430, 460, None])
def test_more_may_be_wanted_of_a_run_that_fell_just_short_of_its_end(
    make: Make, monkeypatch: pytest.MonkeyPatch, tokens: int | None
) -> None:
    fresh, parts = make("fresh"), make("parts")
    collect(fresh, texts(), tokens_max=700)
    put = parts._store.put_cached

    def full(name: str, *rest: Any) -> str:
        if "block" in name:
            raise StoreFull(Path(name), "no space left")
        return put(name, *rest)

    with monkeypatch.context() as patch, pytest.raises(StoreFull):
        patch.setattr(parts._store, "put_cached", full)
        collect(parts, texts()[:20], tokens_max=tokens)
    parts = make("parts")
    assert collect(parts, texts(), tokens_max=700)[0].tokens > 100
    assert parts.get(0).digest == fresh.get(0).digest


def test_a_damaged_checkpoint_is_noticed(make: Make) -> None:
    whole, notes = make("whole"), []
    collect(whole, texts())
    interrupted(make("parts").collect(texts(), passes=SMALL), 20)
    parts = make("parts")
    partial = parts._store.cached("statistics/partial")
    assert partial is not None
    spoil(partial.path)
    collect(parts, texts(), on_change=notes.append)
    assert len(notes) == 1
    assert "damaged" in notes[0]
    assert parts.get(0).digest == whole.get(0).digest


# --- what is kept ---------------------------------------------------------------------------------


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_they_are_kept_with_the_digest_of_their_file(make: Make) -> None:
    collect(make(), texts())
    first, again = make().get(0), make().get(0)
    assert first.digest == again.digest == first.path.stem
    assert torch.equal(first.second_moment, again.second_moment)
    assert make().get(1).digest != first.digest


def test_absent_ones_are_an_error_with_its_remedy(make: Make) -> None:
    with pytest.raises(StatisticsError, match="block 1") as caught:
        make().get(1)
    assert caught.value.block == 1
    assert "cedit train stats --text FILE" in str(caught.value)
    assert "statistics" in str(caught.value)


def test_a_damaged_file_is_named_and_can_be_collected_again(make: Make) -> None:
    found = make()
    collect(found, texts())
    kept = found.get(0)
    spoil(kept.path)
    with pytest.raises(StatisticsError, match=r"block 0 are damaged.*cedit train stats") as caught:
        found.get(0)
    assert kept.path.name in str(caught.value)
    assert found.get(1).count == kept.count
    collect(found, texts())
    assert found.get(0).digest == kept.digest


@pytest.mark.parametrize(
    "moment", [torch.zeros(3, 3, dtype=torch.float64), torch.zeros(256, 256), None]
)
def test_a_file_of_another_shape_or_kind_is_refused(make: Make, moment: Tensor | None) -> None:
    found = make()
    collect(found, texts())
    kept = found._store.cached("statistics/block-0")
    assert kept is not None
    tensors = {} if moment is None else {"second_moment": moment}
    found._store.put_cached("statistics/block-0", tensors, kept.meta)
    with pytest.raises(StatisticsError, match=r"\[256, 256\]"):
        found.get(0)


def test_those_of_another_base_are_refused(make: Make) -> None:
    collect(make(), texts())
    with pytest.raises(StatisticsError, match="another base model"):
        make(fingerprint="f1").get(0)


def test_those_of_another_block_are_refused(make: Make) -> None:
    found = make()
    collect(found, texts())
    kept = found._store.cached("statistics/block-1")
    assert kept is not None
    found._store.put_cached("statistics/block-0", kept.tensors, kept.meta)
    with pytest.raises(StatisticsError, match="another"):
        found.get(0)


# --- the atlas ------------------------------------------------------------------------------------


def test_the_atlas_collects_its_own_when_they_are_asked_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "OWN_TOKENS", 700)
    asked = make("asked", path="atlas").get(1)
    told = make("told", path="m")
    collect(told, AtlasTexts(), passes=Passes(), tokens_max=700)
    assert asked.count == 700
    assert asked.digest == told.get(1).digest


def test_the_atlas_collects_them_once_and_again_where_they_are_damaged(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "OWN_TOKENS", 700)
    first = make(path="atlas").get(0)
    written = first.path.stat().st_mtime_ns
    assert make(path="atlas").get(0).path.stat().st_mtime_ns == written
    spoil(first.path)
    assert torch.equal(make(path="atlas").get(0).second_moment, first.second_moment)
