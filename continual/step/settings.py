"""The settings of a run: which editors are tried, in which batches, and what is measured when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from continual.errors import CeditError
from continual.watch.config import WatchConfig


@dataclass(frozen=True)
class Recheck:
    """The way in which earlier edits are measured again, and how often."""

    full: bool = False  # by forward passes of the whole model, not by the changes alone
    every: int = 1  # steps

    @classmethod
    def parse(cls, text: str) -> Recheck:
        """Read `exact`, `full` or `every=N`. Raises CeditError for any other text."""
        if text in ("exact", "full"):
            return cls(full=text == "full")
        name, _, number = text.partition("=")
        if name == "every" and number.isdecimal() and int(number) > 0:
            return cls(every=int(number))
        raise CeditError(f"recheck is exact, full or every=N with N at least 1, not {text!r}.")


@dataclass(frozen=True)
class ApplySettings:
    """The settings by which requests are applied."""

    chain: tuple[str, ...]  # editors, tried in turn
    batch_size: int = 1
    seed: int = 0
    recheck: Recheck = field(default_factory=Recheck)
    repair: bool = False
    strict: bool = False
    force: bool = False
    editors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # [editor.NAME] tables
    watch: WatchConfig | None = None  # None: the revision is older than the watch set

    @property
    def watched(self) -> WatchConfig | None:
        """The settings of the watch set; None if nothing is watched."""
        config = self.watch
        return config if config is not None and (config.texts or config.neighbours) else None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ApplySettings:
        """Read a revision's settings; the way in which it was re-checked is not among them."""
        return cls(
            chain=tuple(record["chain"]),
            batch_size=int(record["batch_size"]),
            seed=int(record["seed"]),
            repair=bool(record["repair"]),
            force=bool(record["force"]),
            editors=record["editors"],
            watch=WatchConfig.of(record["watch"]) if "watch" in record else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a revision's body has them."""
        tables = {name: dict(self.editors.get(name, {})) for name in self.chain}
        return {
            "chain": list(self.chain),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "force": self.force,
            "repair": self.repair,
            "editors": tables,
            **({} if self.watched is None else {"watch": self.watched.to_json()}),
        }
