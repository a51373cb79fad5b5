"""The trained scope: SERAC's classifier (Mitchell et al. 2022, section 3) on frozen embeddings.

Knows its file: one safetensors file with canonical JSON beside the weights, which names the encoder
that they were trained on. Leaves training to `training`, and the features of a pair to `features`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from continual.effects.records import EmbeddedRecords, Record
from continual.errors import ScopeError
from continual.memory.encoder import SentenceEncoder
from continual.memory.features import features, kept_records, seen_queries
from continual.memory.head import ScopeHead
from continual.memory.inputs import Queries
from continual.memory.scope import CANDIDATES, require_threshold

EMBEDDED = Path(__file__).with_name("scope.safetensors")  # for the embedded encoder

_META_KEY = "cedit"
_FORMAT = 1


class TrainedScope:
    """A scope by learned chance: a record wins an input if its chance reaches the threshold."""

    def __init__(
        self,
        encoder: SentenceEncoder,
        head: ScopeHead,
        threshold: float,
        candidates: int = CANDIDATES,
    ) -> None:
        self.encoder = encoder
        self.head = head
        self.threshold = require_threshold(threshold)
        self.candidates = candidates

    @classmethod
    def embedded(cls, encoder: SentenceEncoder) -> TrainedScope:
        """Load the scope that comes with the package, for the encoder that comes with it."""
        return cls.load(EMBEDDED, encoder)

    @classmethod
    def load(cls, path: Path, encoder: SentenceEncoder) -> TrainedScope:
        """Load a saved scope. Raises ``ScopeError`` for a file that is no scope, or one that was
        trained on another encoder."""
        meta, weights = _read(path)
        if meta["encoder"] != encoder.fingerprint:
            raise ScopeError(
                f"the scope {path} was trained on the encoder {meta['encoder'][:12]}, and this is "
                f"{encoder.fingerprint[:12]} ({encoder.folder}): use that one, or train a scope "
                "on this"
            )
        try:
            return cls(encoder, ScopeHead(weights), meta["threshold"], meta["candidates"])
        except ValueError as error:
            raise _damaged(path, error) from error

    def save(self, path: Path) -> None:
        """Write the scope, replacing an older file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._serialised)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weights, the threshold, the candidates and the encoder's fingerprint."""
        return hashlib.sha256(self._serialised).hexdigest()

    def queries(self, texts: Sequence[str]) -> Queries:
        """Return inputs as a whole and by their last sentence."""
        return seen_queries(self.encoder, texts)

    def records(self, records: Sequence[Record]) -> EmbeddedRecords:
        """Return records by their prompt and subject."""
        return kept_records(self.encoder, records)

    def scores(
        self, queries: Queries, records: EmbeddedRecords, pairs: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return [p] float32: the chance that each input is about its record."""
        pair_features = features(self.encoder, queries, records, pairs)
        return torch.sigmoid(self.head.logits(pair_features)).float()

    @cached_property
    def _serialised(self) -> bytes:
        meta = {
            "format": _FORMAT,
            "encoder": self.encoder.fingerprint,
            "threshold": self.threshold,
            "candidates": self.candidates,
        }
        text = json.dumps(meta, sort_keys=True, separators=(",", ":"))
        weights = {name: tensor.contiguous() for name, tensor in self.head.weights.items()}
        return bytes(save(weights, metadata={_META_KEY: text}))


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})[_META_KEY])
        fields = (meta["format"], meta["encoder"], meta["threshold"], meta["candidates"])
        weights = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if fields[0] != _FORMAT or not all(map(isinstance, fields[1:], (str, float, int))):
        raise _damaged(path, f"its meta is {meta}")
    return meta, weights


def _damaged(path: Path, cause: object) -> ScopeError:
    return ScopeError(
        f"{path} can't be read as a trained scope ({cause}): name a file that was saved as one, or "
        "train it anew"
    )
