"""The settings of IKE. The scope is the store's: `[memory]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.memory.contexts import FORM, require_form
from continual.tables import SettingsTable


@dataclass(frozen=True)
class IkeConfig(SettingsTable):
    """Settings. The shares of the kinds of demonstrations are the paper's (section 4.1)."""

    table: ClassVar[str] = "editor.ike"

    form: str = FORM  # the form of every new fact, and of the question behind it
    demonstrations: str | None = None
    """A file of requests to demonstrate with; None: no demonstrations."""
    count: int = 16  # demonstrations, the nearest to the edit; half as many at each retry
    copy: int = 1  # of 8 demonstrations, those of a request's own prompt
    update: int = 3  # of 8 demonstrations, those of a request's rephrase
    retain: int = 4  # of 8 demonstrations, those of a prompt whose answer has to stay
    tokens_max: int = 1024
    """Tokens of all text before an input, at most; demonstrations are cut to fit."""

    def __post_init__(self) -> None:
        require_form(self.form, self.table)
        shares = (self.copy, self.update, self.retain)
        if self.count < 0 or min(shares) < 0 or not sum(shares) or self.tokens_max < 1:
            raise self.refused(
                "count, copy, update and retain are not negative, one of the kinds and tokens_max "
                "are at least 1"
            )

    def kinds(self, count: int) -> dict[str, int]:
        """Return the number of demonstrations of each kind, out of `count`."""
        shares = {"copy": self.copy, "update": self.update, "retain": self.retain}
        total = sum(shares.values())
        ends: list[int] = []
        position = 0
        for share in shares.values():
            position += share
            ends.append(round(count * position / total))
        starts = [0, *ends[:-1]]
        return {name: b - a for name, a, b in zip(shares, starts, ends, strict=True)}
