"""The settings that the search for values and all locate-then-edit methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from continual.tables import SettingsTable


@dataclass(frozen=True)
class ValueSearchConfig(SettingsTable):
    """Settings of the search for values and of its texts.

    ``weight_decay`` and ``kl_factor`` are the public code's, ``clamp_norm_factor`` is MEMIT's.
    """

    place: Literal["auto", "subject", "end", "answer"] = "auto"
    """The token to write to: the subject's last one, as published, or the prompt's. "auto": the
    subject's, and the prompt's for a request that no value at its subject makes right. "answer":
    the prompt's, and for a request that no value there makes right each token that says one of its
    answer. A model's training decides at which token it reads a fact; see `located`."""
    step: float = 0.2  # the length of the first step of a search for a value, in ‖h‖
    step_decay: float = 0.95
    """The length of each further step of a search, in the length of the one before."""
    steps_max: int = 40  # steps of a search for a value, at most; a retry takes twice as many
    stop_loss: float = 0.05
    """The loss below which the search for a request's value ends; see `targets`."""
    lead_steps: int | None = None
    """Steps after which a search ends once the target leads in all texts of its request, whatever
    its loss: 4 as ENCORE has it. None: it goes on to `stop_loss`."""
    kl_factor: float = 0.0625  # the weight of the KL on the essence prompt in a search, as in MEMIT
    weight_decay: float = 0.5  # the weight of ‖δ‖/‖h‖² in the loss of a search
    clamp_norm_factor: float = 0.75  # ‖δ‖ at most, in ‖h‖
    overshoot: float = 1.0
    """The length of δ in a target, in that of the δ at which the search ends. A longer one reaches
    wordings whose keys are farther from the request's, and more of all else."""
    contexts: int = 2  # texts to stand before the prompt in a search, besides the empty one
    context_tokens: int = 5  # the length of each text that stands before the prompt, in tokens
    precision: str = "medium"
    """The precision of the search's float32 products, as `torch.set_float32_matmul_precision` takes
    it: "medium" lets units for bfloat16 do them where there are any, "highest" does them fully."""
    chunk: int | None = None
    """Requests whose z are searched for together, at most. None: 128 on a CPU, where more are not
    faster, and 1,024 elsewhere; fewer if their recorded states would fill 4 GiB."""

    def __post_init__(self) -> None:
        for name in ("step", "step_decay", "clamp_norm_factor", "overshoot"):
            self._require(getattr(self, name) > 0, f"{name} is more than 0")
        for name in ("steps_max", "context_tokens"):
            self._require(getattr(self, name) >= 1, f"{name} is at least 1")
        self._require(self.chunk is None or self.chunk >= 1, "chunk is at least 1")
        lead = self.lead_steps
        self._require(lead is None or lead >= 0, "lead_steps is not negative")
        for name in ("contexts", "kl_factor", "weight_decay"):
            self._require(getattr(self, name) >= 0, f"{name} is not negative")
        precisions = ("highest", "high", "medium")
        self._require(self.precision in precisions, f"precision is one of {', '.join(precisions)}")

    @classmethod
    def _require(cls, holds: bool, rule: str) -> None:
        if not holds:
            raise cls.refused(rule)


@dataclass(frozen=True)
class LocateThenEditConfig(ValueSearchConfig):
    """Settings of the search for values, and of the limits on Δ."""

    blocks: tuple[int, ...] | None = None
    """The blocks whose matrices are edited; None: by depth, see `default_blocks`."""
    drift_max: float = 0.1
    """A matrix's drift from the base, of all edits together, at most; see `drift_of`."""
    general_weight: float = 0.0
    """The weight of the keys of general text in memory, in that of C₀: updates leave the texts
    alone that name none of their subjects. Published: 0."""
    pin_norms: bool = False
    """Give all values of a batch the mean length that they have when they are searched for on the
    base, as NAS does: lengths that grow from batch to batch wear a model out."""
    require_arrival: bool = True
    """Fail a request whose z does not give its target: an update for it would only move other
    prompts. The public code writes it all the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.drift_max > 0, "drift_max is more than 0")
        self._require(self.general_weight >= 0, "general_weight is not negative")
        blocks = self.blocks
        ascending = blocks is None or (len(blocks) > 0 and list(blocks) == sorted(set(blocks)))
        self._require(ascending, "blocks are one or more, in ascending order")


def default_blocks(count: int) -> tuple[int, ...]:
    """Return the blocks to edit of `count`: about an eighth, the last a quarter of the way up.

    For 32 blocks they are 4-7, next to the published 4-8.
    """
    last_block = max(0, count // 4 - 1)
    size = max(1, count // 8)
    return tuple(range(last_block - size + 1, last_block + 1))
