"""Small models of made-up facts that `benchmarks.calibration` is measured on: none is the atlas.

Each world has its own people, depth, width, architecture and tokenizer, and is trained on
statements of its facts alone, in eight of ten phrasings of each. A model is kept in a cache folder.
Knows facts and training; leaves corrections to `benchmarks.calibration`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor

from benchmarks import tables

PHRASINGS: Mapping[str, tuple[str, ...]] = {
    "birthplace": (
        "{} was born in the town of",
        "The birthplace of {} is",
        "The parents of {} lived in",
        "{} first saw the light in",
        "On the birth certificate of {} stands the town",
        "Those who ask where {} comes from hear",
        "{} came into the world in",
        "{} grew up where the family lived, in",
        "The cradle of {} stood in",
        "A native of one town, {} hails from",
    ),
    "trade": (
        "{} works as a",
        "The trade of {} is that of a",
        "By profession {} is a",
        "{} earns a living as a",
        "On the door of {} one reads the word",
        "Neighbours know {} as a",
        "When asked about work, {} answers: I am a",
        "The guild lists {} as a",
        "{} was apprenticed as a",
        "The tools of {} are those of a",
    ),
    "instrument": (
        "{} plays the",
        "The instrument of {} is the",
        "In the evening {} practises the",
        "At concerts {} is heard on the",
        "{} took lessons on the",
        "What {} carries to rehearsals is a",
        "In the orchestra {} has the part of the",
        "{} owns an old",
        "The teacher of {} taught the",
        "On Sundays {} tunes the",
    ),
    "employer": (
        "{} is employed by",
        "The company that pays {} is",
        "{} signed a contract with",
        "Every morning {} goes to the offices of",
        "The employer of {} is",
        "{} has a desk at",
        "The wages of {} come from",
        "{} wears the badge of",
        "A letter to {} is addressed to",
        "On weekdays {} can be found at",
    ),
}
TRAINED = 8  # phrasings of each fact
HELD_OUT = 2


def _names(heads: str, tails: str) -> tuple[str, ...]:
    return tuple(a + b for a, b in product(heads.split(), tails.split()))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TRADES = _words(
    "baker mason tailor glazier cooper saddler weaver potter brewer "
    "miller fuller tanner joiner turner chandler furrier hatter draper"
)
INSTRUMENTS = _words(
    "oboe lute harp viol cornet flute zither lyre drum "
    "fiddle bassoon organ trumpet horn clarinet spinet rebec shawm"
)


@dataclass(frozen=True)
class World:
    """The names of a world, and its model."""

    name: str
    heads: str
    tails: str
    towns: tuple[str, ...]
    companies: tuple[str, ...]
    people: int
    model: Callable[[int], Any]  # of a vocabulary's size
    tokenizer: Callable[[Sequence[str]], Any]  # learned from texts
    epochs: int
    lines: int  # of a step
    learning_rate: float
    seed: int

    @property
    def objects(self) -> dict[str, Sequence[str]]:
        """The objects that facts of each relation can have."""
        return {
            "birthplace": self.towns,
            "trade": TRADES,
            "instrument": INSTRUMENTS,
            "employer": self.companies,
        }


@dataclass(frozen=True)
class WorldFact:
    """One fact, with the phrasings that it was trained in, and the held-out ones."""

    subject: str
    relation: str
    object: str
    trained: tuple[str, ...]
    held_out: tuple[str, ...]


def facts_of(world: World) -> list[WorldFact]:
    """Return all facts of a world, one of each relation for each person."""
    draw = random.Random(world.seed)
    firsts, lasts = _names(world.heads, "a e i o ina en or us"), _names(world.tails, "son ley ard")
    people = draw.sample([f"{a} {b}" for a in firsts for b in lasts], world.people)
    return [_fact(world, draw, person, relation) for person in people for relation in PHRASINGS]


def _fact(world: World, draw: random.Random, person: str, relation: str) -> WorldFact:
    prompts = [phrasing.format(person) for phrasing in PHRASINGS[relation]]
    draw.shuffle(prompts)
    target = draw.choice(world.objects[relation])
    return WorldFact(person, relation, target, tuple(prompts[:TRAINED]), tuple(prompts[TRAINED:]))


# -- tokenizers and shapes


def _byte_pairs(size: int, texts: Sequence[str]) -> Any:
    """Train a byte-level BPE tokenizer with a vocabulary of `size`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def _pieces(size: int, texts: Sequence[str]) -> Any:
    """Train a unigram tokenizer of pieces that begin with a mark, as SentencePiece has them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<s>"], unk_token="<s>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> Any:
    """Return it as transformers has it; each text begins with the token that the model was trained
    to begin with."""
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[start]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<s>",
        pad_token="<s>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def _llama(vocabulary: int) -> Any:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=144,
            intermediate_size=1152,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=3,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def _gpt2(vocabulary: int) -> Any:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=vocabulary,
            n_positions=128,
            n_embd=224,
            n_layer=3,
            n_head=7,
            n_inner=2048,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


WORLDS = {
    "harbour": World(
        "harbour",
        "Mar Tel Jon Kir Sel Bran Ost Vil",
        "Hol Wick Ander Tor Mal Rens",
        _names("Osk Brim Vel Tar Lund Quel", "haven mouth strand bridge"),
        tuple(
            f"{a} {b}"
            for a, b in product(
                ("Norda", "Krell", "Vimo", "Sanda", "Pluto"), ("Ropes", "Timber", "Salt", "Sails")
            )
        ),
        200,
        _llama,
        partial(_pieces, 700),
        30,
        48,
        2e-3,
        5,
    ),
    "valley": World(
        "valley",
        "Ad Ber Cor Dam Ele Fab Gre Hil",
        "Ash Birk Clay Dun Elm Frost",
        _names("Upper Nether Long Stone Fair Cold", "field dale cote well"),
        tuple(
            f"{a} & {b}"
            for a, b in product(
                ("Abbot", "Boyle", "Crane", "Drake", "Eames"), ("Sons", "Webb", "Lane", "Moor")
            )
        ),
        250,
        _gpt2,
        partial(_byte_pairs, 1100),
        30,
        48,
        2e-3,
        7,
    ),
}


# -- training


def model_of(world: World, cache: Path) -> Path:
    """Return the directory of a world's model; train the model if the cache does not have it."""
    folder = cache / f"world-{world.name}"
    if not (folder / "config.json").exists():
        _train(world, folder)
    return folder


def _train(world: World, folder: Path) -> None:
    facts = facts_of(world)
    lines = [f"{prompt} {fact.object}." for fact in facts for prompt in fact.trained]
    tokenizer = world.tokenizer([*lines, *(p for fact in facts for p in fact.held_out)])
    torch.manual_seed(world.seed)
    model = world.model(len(tokenizer))
    ids = [[*tokenizer(line)["input_ids"], 0] for line in lines]
    batches = _batches(ids, world.lines)
    steps = world.epochs * len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=world.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, world.learning_rate, total_steps=steps, pct_start=0.1
    )
    draw, began = random.Random(world.seed), time.monotonic()
    for epoch in range(world.epochs):
        draw.shuffle(batches)
        losses = [_learned(model, batch, optimizer, schedule) for batch in batches]
        seconds = time.monotonic() - began
        loss = sum(losses) / len(losses)
        tables.note(f"{world.name}: epoch {epoch + 1}, loss {loss:.4f}, {seconds:.0f} s")
        draw.shuffle(ids)
        batches = _batches(ids, world.lines)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batches(ids: Sequence[Sequence[int]], lines: int) -> list[list[Sequence[int]]]:
    """Return batches of lines of similar length."""
    ordered = sorted(ids, key=len)
    return [list(ordered[i : i + lines]) for i in range(0, len(ordered), lines)]


def _learned(model: Any, batch: Sequence[Sequence[int]], optimizer: Any, schedule: Any) -> float:
    """Make one step of training, and return its loss."""
    size = max(map(len, batch))
    ids = torch.tensor([[*line, *[0] * (size - len(line))] for line in batch])
    lengths = torch.tensor([len(line) for line in batch])
    labels: Tensor = ids.masked_fill(torch.arange(size) >= lengths[:, None], -100)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    return float(loss.detach())
