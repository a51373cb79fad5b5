"""The settings of the look-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from continual.locate_then_edit.config import ValueSearchConfig


@dataclass(frozen=True)
class LookupConfig(ValueSearchConfig):
    """The place of the records, the width of their gates, and the search for their values.

    NeuralDB stands at one block in the middle, keys each record with the input of the FFN's output
    matrix at the subject's last token, and has one γ of .65 for all. Here γ is set record by
    record, from the tokens on which the record has to stay silent.
    """

    table: ClassVar[str] = "editor.lookup"

    block: int | None = None
    """The block of the records; None: in the middle, never the last."""
    place: Literal["auto", "subject", "end"] = "auto"
    """The token whose key opens a record, and where its value lands: the subject's last one, as
    published, or the prompt's. "auto": for each request the one whose gate takes in more of its
    wordings, and the other one if no value is found there. Without a subject it is the prompt's."""
    key: Literal["inner", "ffn"] = "inner"
    """`inner`: keys are inputs of the FFN's output matrix, as published; `ffn`: inputs of the FFN,
    which are some four times as narrow."""
    margin: float = 0.75
    """γ, on the way from the highest cosine on which the record has to stay silent (0) to that of
    its own key (1)."""
    margin_min: float = 0.5
    """γ on the same way, at least, for a gate that is widened to take in a wording or a copy."""
    gate_min: float = 0.65  # γ, at least; as published
    copies: int = 8
    """Copies of the prompt behind whole sentences, to which gates are widened as far as may be."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.block is None or self.block >= 0, "block is not negative")
        self._require(0 <= self.margin < 1, "margin is in [0, 1)")
        self._require(0 <= self.margin_min <= self.margin, "margin_min is in [0, margin]")
        self._require(-1 <= self.gate_min < 1, "gate_min is in [-1, 1)")
        self._require(self.copies >= 0, "copies is not negative")
