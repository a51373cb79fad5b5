"""A tiny language: forty countries, their capitals, and small decoders that speak of them.

A word is a token, so what a request changes can be read off its text. ``save_decoder`` writes a
model directory as save_pretrained does: of random weights, or trained for a few seconds until the
model answers all of its facts, in every phrasing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

COUNTRIES = tuple(
    a + b
    for a in ("Ba", "Ke", "Lo", "Mi", "Nu", "Ra", "So", "Ti")
    for b in ("dar", "lin", "mos", "nek", "ton")
)
CAPITALS = tuple(
    a + b
    for a in ("Al", "Be", "Co", "Du", "El", "Fa", "Gi", "Ho")
    for b in ("ria", "vik", "sten", "mund", "pol")
)
PHRASINGS = (
    "the capital of {} is",
    "people in {} call their capital",
    "the seat of government in {} is",
    "the king of {} lives in",
)
KNOWN = 30  # the trained decoder knows the capitals of the first thirty
POSITIONS = 48
END = "."


def words() -> list[str]:
    """The vocabulary."""
    spoken = " ".join(PHRASINGS).replace("{}", "").split()
    return ["<pad>", "<unk>", END, *dict.fromkeys(spoken), *COUNTRIES, *CAPITALS]


def tokenizer() -> Any:
    """One token a word; words that are not in the language are all the same one."""
    vocabulary = {word: number for number, word in enumerate(words())}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", unk_token="<unk>", model_max_length=POSITIONS
    )


def ask(country: int, phrasing: int = 0) -> str:
    """The prompt about a country's capital."""
    return PHRASINGS[phrasing].format(COUNTRIES[country])


def capital(country: int) -> str:
    """What the trained decoder answers."""
    return CAPITALS[(7 * country + 3) % len(CAPITALS)]


def correction(country: int, target: str | None = None, **more: Any) -> dict[str, Any]:
    """A record that gives a country another capital."""
    return {
        "prompt": ask(country),
        "target_new": target or CAPITALS[(7 * country + 4) % len(CAPITALS)],
        "subject": COUNTRIES[country],
        "relation": "capital",
        **more,
    }


def _gpt2(width: int) -> Any:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=len(words()),
            n_embd=width,
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


def _llama(width: int) -> Any:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=len(words()),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )


def _gemma2(width: int) -> Any:
    return hf.Gemma2ForCausalLM(
        hf.Gemma2Config(
            vocab_size=len(words()),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=POSITIONS,
            pad_token_id=0,
        )
    )


DECODERS: Mapping[str, Callable[[int], Any]] = {"gpt2": _gpt2, "llama": _llama, "gemma2": _gemma2}


def decoder(name: str = "gpt2", width: int = 64, seed: int = 0) -> Any:
    """A random decoder whose answers are spread over the language, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DECODERS[name](width).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.25)
    return model


def trained_decoder() -> Any:
    """A GPT-2 of two blocks that knows the first thirty capitals in all phrasings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _gpt2(64)
        read = tokenizer()
        batches = [_lesson(read, phrasing) for phrasing in range(len(PHRASINGS))]
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(120):
            ids, position, targets = batches[step % len(batches)]
            logits = model(input_ids=ids).logits[:, position]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, targets).backward()
            optimizer.step()
    return model.eval()


def _lesson(read: Any, phrasing: int) -> tuple[Tensor, int, Tensor]:
    """All known facts in one phrasing: ids [30, T], where the answer is predicted, and it [30]."""
    lines = [f"{ask(country, phrasing)} {capital(country)}" for country in range(KNOWN)]
    ids = read(lines, return_tensors="pt")["input_ids"]
    return ids[:, :-1], ids.shape[1] - 2, ids[:, -1]


# -- models of other tasks

LABELS = ("north", "south", "east")


def part(country: int) -> str:
    """The label that the trained classifier gives a country."""
    return LABELS[(5 * country + 2) % len(LABELS)]


def answering_tokenizer() -> Any:
    """The tokenizer, with an end for answers."""
    read = tokenizer()
    read.eos_token = END
    return read


def _bart(width: int) -> Any:
    return hf.BartForConditionalGeneration(
        hf.BartConfig(
            vocab_size=len(words()),
            d_model=width,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=3 * width,
            decoder_ffn_dim=4 * width,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            max_position_embeddings=POSITIONS,
            dropout=0.0,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=words().index(END),
            decoder_start_token_id=words().index(END),
            forced_eos_token_id=None,
        )
    )


def _t5(width: int) -> Any:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=len(words()),
            d_model=width,
            d_kv=width // 4,
            d_ff=3 * width,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=words().index(END),
            decoder_start_token_id=0,
        )
    )


ANSWERING: Mapping[str, Callable[[int], Any]] = {"bart": _bart, "t5": _t5}


def save_answering(directory: Path, name: str) -> Path:
    """A model directory: an encoder and a decoder that know the first thirty capitals, asked in
    all phrasings."""
    read = answering_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ANSWERING[name](64)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(300):
            asked = [ask(country, step % len(PHRASINGS)) for country in range(KNOWN)]
            labels = read([f"{capital(c)} {END}" for c in range(KNOWN)], return_tensors="pt")
            inputs = read(asked, return_tensors="pt")["input_ids"]
            loss = model(input_ids=inputs, labels=labels["input_ids"]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval().save_pretrained(directory)
    read.save_pretrained(directory)
    return directory


def _bert_labels(width: int) -> Any:
    return hf.BertForSequenceClassification(
        hf.BertConfig(
            vocab_size=len(words()),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
        )
    )


def _gpt2_labels(width: int) -> Any:
    config = _gpt2(width).config
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: index for index, label in enumerate(LABELS)}
    return hf.GPT2ForSequenceClassification(config)


CLASSIFIERS: Mapping[str, Callable[[int], Any]] = {"bert": _bert_labels, "gpt2": _gpt2_labels}


def save_classifier(directory: Path, name: str) -> Path:
    """A model directory: a classifier that knows the part of the first thirty countries."""
    read = tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLASSIFIERS[name](64)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        labels = torch.tensor([LABELS.index(part(country)) for country in range(KNOWN)])
        for step in range(150):
            asked = [ask(c, step % len(PHRASINGS)) for c in range(KNOWN)]
            inputs = read(asked, return_tensors="pt")["input_ids"]
            loss = model(input_ids=inputs, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval().save_pretrained(directory)
    read.save_pretrained(directory)
    return directory


def save_decoder(directory: Path, model: Any = None) -> Path:
    """A model directory: a random decoder, or the one that is given."""
    (decoder() if model is None else model).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory
