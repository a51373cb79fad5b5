"""New models of three architectures, small enough to be trained on two cores, and their tokenizers.

`bert` is a claim classifier: lower-cased WordPiece, a label for each kind of answer. `bart` and
`t5` answer questions: byte-level BPE, questions and answers end with the end of sequence. The
module leaves training to `training`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

CONTEXT_TOKENS = 128


@dataclass(frozen=True)
class NetworkShape:
    """The size of a model; seq2seq models have as many blocks in the encoder as in the decoder."""

    blocks: int
    width: int
    heads: int
    ffn_width: int
    vocabulary: int


@dataclass(frozen=True)
class Architecture:
    """The parts of an architecture: its size, its tokenizer and its model."""

    shape: NetworkShape
    new_tokenizer: Callable[[Iterable[str], int], PreTrainedTokenizerFast]
    new_model: Callable[[PreTrainedTokenizerFast, NetworkShape, Sequence[str]], Any]
    labels: bool  # an answer is a label, not a text

    def new(self, texts: Iterable[str], answers: Iterable[str], seed: int) -> tuple[Any, Any]:
        """Return a tokenizer trained on these texts, and a model with random weights.

        The answers become the model's labels, if it has labels.
        """
        tokenizer = self.new_tokenizer(texts, self.shape.vocabulary)
        torch.manual_seed(seed)
        return tokenizer, self.new_model(tokenizer, self.shape, sorted(set(answers)))

    def pretrained(self, directory: Path, answers: Iterable[str], seed: int) -> tuple[Any, Any]:
        """Load the tokenizer and the model of a directory; a missing label head is new."""
        torch.manual_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        if not self.labels:
            return tokenizer, AutoModelForSeq2SeqLM.from_pretrained(directory)
        return tokenizer, AutoModelForSequenceClassification.from_pretrained(
            directory, **_label_names(sorted(set(answers))), ignore_mismatched_sizes=True
        )


def _label_names(labels: Sequence[str]) -> dict[str, Any]:
    """Return a config's names for these labels."""
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


# --- tokenizers -----------------------------------------------------------------------------------


def word_pieces(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train BERT's tokenizer: [CLS] text [SEP], without capitals and accents."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = _frame(tokenizer, "[CLS] $A [SEP]", ("[CLS]", "[SEP]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=CONTEXT_TOKENS,
    )


def byte_pairs(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer: text </s>, for questions and answers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = _frame(tokenizer, "$A </s>", ("</s>",))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _frame(tokenizer: Tokenizer, single: str, special: Sequence[str]) -> Any:
    return processors.TemplateProcessing(
        single=single, special_tokens=[(token, tokenizer.token_to_id(token)) for token in special]
    )


# --- models ---------------------------------------------------------------------------------------


def bert(tokenizer: PreTrainedTokenizerFast, shape: NetworkShape, labels: Sequence[str]) -> Any:
    """Return BERT's encoder with its pooler and a label head."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn_width,
        max_position_embeddings=CONTEXT_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        **_label_names(labels),
    )
    return BertForSequenceClassification(config)


def bart(tokenizer: PreTrainedTokenizerFast, shape: NetworkShape, labels: Sequence[str]) -> Any:
    """Return BART's encoder and decoder; an answer begins behind the padding token, as T5's
    does."""
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=shape.width,
        encoder_layers=shape.blocks,
        decoder_layers=shape.blocks,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=shape.ffn_width,
        decoder_ffn_dim=shape.ffn_width,
        max_position_embeddings=CONTEXT_TOKENS,
        dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=None,
        forced_bos_token_id=None,
    )
    return BartForConditionalGeneration(config)


def t5(tokenizer: PreTrainedTokenizerFast, shape: NetworkShape, labels: Sequence[str]) -> Any:
    """Return T5's encoder and decoder."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=shape.width,
        d_kv=shape.width // shape.heads,
        d_ff=shape.ffn_width,
        num_layers=shape.blocks,
        num_heads=shape.heads,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


ARCHITECTURES = {
    "bert": Architecture(NetworkShape(3, 192, 4, 768, 6000), word_pieces, bert, labels=True),
    "bart": Architecture(NetworkShape(2, 160, 4, 640, 3000), byte_pairs, bart, labels=False),
    "t5": Architecture(NetworkShape(2, 160, 4, 640, 3000), byte_pairs, t5, labels=False),
}
