"""The settings of the watch set: the store's `[watch]` table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from continual.tables import SettingsTable

ROWS_MIN = 500
"""Rows of memory below which an edit is hardly held back from unrelated text."""

NEW_STORE = {"per_edit": True, "certain_min": 0.5, "spread_max": 0.04}
"""The settings of a new store that differ from the defaults, which older stores stand on."""
UNWATCHED = {"texts": 0, "neighbours": 0}
"""The table of a store that watches nothing: edits leave the probes alone, and no more."""


@dataclass(frozen=True)
class WatchConfig(SettingsTable):
    """The amount of text that is watched, and the share of it that an edit may change.

    The budgets count held-out passages alone: `watch_max` is the share of the general positions
    whose next token a step may change, or with `per_edit` each edit of it. `neighbours_max` is the
    share of an edit's own neighbours that it may answer otherwise than before.
    """

    table: ClassVar[str] = "watch"

    texts: int = 128  # general texts, written once by a base model; 0: no general text
    tokens: int = 24  # the length of a general text, in tokens
    neighbours: int = 16  # prompts near each request, half of them held out; 0: none are made
    said: int = 4  # tokens of the answer to a neighbour that are watched
    behind: int = 8  # tokens that are watched behind the answer to a neighbour
    watch_max: float = 0.0005
    """Share of the held-out positions of general text that a step may change."""
    neighbours_max: float = 0.125
    """Share of a request's held-out neighbours that its edit may change."""
    spread_max: float = 0.0
    """Share of the held-out positions of general text that edits of parameters, which reach every
    text, may change in all, in new stores .04. It counts where it allows more than `watch_max`, and
    for the last editor of a chain alone: another one may do without."""
    per_edit: bool = False  # a step of n edits may change n times watch_max, as in new stores
    certain_min: float = 0.0
    """The least probability of the next token at a general position that is measured, in new stores
    .5: where the base hardly prefers one word to another, another word is no damage. Positions in
    memory count all."""

    def __post_init__(self) -> None:
        counts = ("texts", "tokens", "neighbours", "said", "behind")
        if negatives := [name for name in counts if getattr(self, name) < 0]:
            raise self.refused(f"{negatives[0]} = {getattr(self, negatives[0])} is below 0")
        if self.texts and self.tokens < 2:
            raise self.refused(f"tokens = {self.tokens} is too few for a text: give at least 2")
        if self.neighbours and self.said < 1:
            raise self.refused(f"said = {self.said} leaves neighbours without an answer")
        for name in ("watch_max", "neighbours_max", "spread_max", "certain_min"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise self.refused(f"{name} = {getattr(self, name)} is no share from 0 to 1")

    def to_json(self) -> dict[str, Any]:
        """Return the settings in the form that a revision records."""
        return asdict(self)
