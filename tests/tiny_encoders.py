"""A sentence-transformers folder with a tiny BERT of random weights, made in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf

WIDTH = 16
_TEXT = "the capital of is where what language speaks river town x y z q a ? . ,"
WORDS = _TEXT.split()


def save_encoder(folder: Path, seed: int = 0) -> Path:
    """A mean-pooled BERT over ``WORDS`` and single letters."""
    from sentence_transformers import SentenceTransformer, models

    base = folder / "bert"
    base.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(pieces)]
    (base / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    hf.BertTokenizerFast(str(base / "vocab.txt")).save_pretrained(base)
    config = hf.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf.BertModel(config).save_pretrained(base)
    transformer = models.Transformer(str(base), max_seq_length=32)
    pooling = models.Pooling(WIDTH)
    target = folder / "encoder"
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(target))
    return target
