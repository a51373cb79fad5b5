"""Tokenizers as pretrained models have them, and a tiny model that chats about the tiny language.

``byte_level`` keeps blanks in its tokens, as GPT's does; ``metaspace`` puts a blank of its own in
front of a text, as sentencepiece does. Both have the marks and the template of a chat.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.tiny_language import CAPITALS, COUNTRIES, PHRASINGS, ask, capital

BEGIN, START, END, TEXT_END = "<s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIALS = [TEXT_END, START, END, BEGIN]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
POSITIONS = 256
IGNORED = -100  # a target that the loss leaves out
KNOWN = 12  # the trained model knows the capitals of the first twelve, in two phrasings
PHRASED = 2
STEPS = 400


def _texts() -> Iterator[str]:
    """Texts in which every word of the language stands with a blank before it, and without."""
    for phrasing in range(len(PHRASINGS)):
        for country in range(len(COUNTRIES)):
            yield f"{ask(country, phrasing)} {capital(country)}\nuser\nassistant\nsystem\n"
    yield from (f"{word}\n {word}" for word in (*CAPITALS, *COUNTRIES) for _ in range(20))


@cache
def _byte_level() -> Tokenizer:
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(_texts(), trainer)
    return model


@cache
def _metaspace() -> Tokenizer:
    model = Tokenizer(models.Unigram())
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    model.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["<unk>", *SPECIALS],
        unk_token="<unk>",
        show_progress=False,
    )
    model.train_from_iterator(_texts(), trainer)
    return model


def _read(model: Tokenizer, template: str | None = TEMPLATE) -> Any:
    copied = Tokenizer.from_str(model.to_str())
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=copied,
        pad_token=TEXT_END,
        eos_token=TEXT_END,
        extra_special_tokens=[START, END],
        chat_template=template,
    )


def byte_level(template: str | None = TEMPLATE) -> Any:
    """A tokenizer of bytes and pairs, whose tokens have their blanks in front."""
    return _read(_byte_level(), template)


def metaspace(template: str | None = TEMPLATE) -> Any:
    """A tokenizer that puts a blank of its own in front of a text."""
    return _read(_metaspace(), template)


def enclosing(read: Any, begin: str = BEGIN, end: str = TEXT_END) -> Any:
    """The tokenizer, with tokens put in front of a text and behind it."""
    model = read.backend_tokenizer
    model.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(text, model.token_to_id(text)) for text in (begin, end)],
    )
    return read


def turn(country: int, phrasing: int = 0) -> list[dict[str, str]]:
    """The chat in which a user asks about a country's capital."""
    return [{"role": "user", "content": ask(country, phrasing)}]


def templated(country: int, phrasing: int = 0) -> str:
    """That chat as the template writes it, up to where the model answers."""
    return f"{START}user\n{ask(country, phrasing)}{END}\n{START}assistant\n"


def _gpt2(size: int) -> Any:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=size,
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=POSITIONS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )


def trained_chat_model(read: Any) -> Any:
    """A GPT-2 that knows the first capitals, in plain text and in the turns of a chat."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _gpt2(len(read))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        lessons = [_lesson(read, *kind) for kind in product(range(PHRASED), (True, False))]
        for step in range(STEPS):
            ids, targets = lessons[step % len(lessons)]
            logits = model(input_ids=ids).logits[:, :-1]
            optimizer.zero_grad()
            cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten()).backward()
            optimizer.step()
    return model.eval()


def _lesson(read: Any, phrasing: int, is_chat: bool) -> tuple[Tensor, Tensor]:
    """Token ids [12, T] of all known facts, and the same as targets where the answers are."""
    ids: list[list[int]] = []
    targets: list[list[int]] = []
    for country in range(KNOWN):
        prompt = templated(country, phrasing) if is_chat else ask(country, phrasing)
        answer = capital(country) + END if is_chat else f" {capital(country)}{TEXT_END}"
        asked, told = (
            read(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)
        )
        ids.append([*asked, *told])
        targets.append([*[IGNORED] * len(asked), *told])
    length = max(map(len, ids))
    for row, wanted in zip(ids, targets, strict=True):
        wanted += [IGNORED] * (length - len(row))
        row += [0] * (length - len(row))
    return torch.tensor(ids), torch.tensor(targets)


def save_chat_model(directory: Path) -> Path:
    """A model directory with the byte-level tokenizer and its template."""
    read = byte_level()
    trained_chat_model(read).save_pretrained(directory)
    read.save_pretrained(directory)
    return directory
