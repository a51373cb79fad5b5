"""The watch set of a run: writes neighbourhoods before an edit, and weighs its patch against them.

Knows the site, the ledger and the budget; leaves the order of the stages to `step`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from continual.memory.answers import AnswerJudge
from continual.picture_marks import picture_keys, spelled
from continual.recheck.ledger import NEIGHBOUR, WATCH, WATCHED, Ledger, LedgerEntry
from continual.requests import Request
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding
from continual.watch import neighbours
from continual.watch.config import WatchConfig
from continual.watch.neighbours import Neighbourhood, WatchedRequest
from continual.watch.passages import UNSAID, Passage

SHOWN_CHARACTERS = 60  # of a text that a reason repeats


@dataclass(frozen=True)
class Harm:
    """The reason to take a patch off again: held-out probes that it changes, over the budget."""

    reason: str
    changed: tuple[Encoding, ...]  # these probes


@dataclass(frozen=True)
class WatchSet:
    """The watch set of a run, and the share of it that an edit may change."""

    site: Site
    config: WatchConfig
    seed: int
    _read: dict[tuple[str, Passage], Rows] = field(default_factory=dict)  # by the matrices' state

    def neighbourhoods(
        self, asked: Sequence[WatchedRequest], known: Iterable[Request]
    ) -> dict[str, Neighbourhood]:
        """Write the neighbourhood of each request, by its id, with the model as it stands; `known`
        are the history's requests, the latest first, and the stream's. Held-out prompts that a
        record answers otherwise are left out."""
        self._read.clear()
        neighbourhoods = neighbours.write(self.site, asked, known, self.config, self.seed)
        return {
            query.request.id: self._measurable(neighbourhood)
            for query, neighbourhood in zip(asked, neighbourhoods, strict=True)
        }

    def _measurable(self, neighbourhood: Neighbourhood) -> Neighbourhood:
        """Return the neighbourhood without held-out prompts whose answer differs from the written
        one: a record answers them, or two tokens score too close."""
        return replace(neighbourhood, held_out=self._right_among(neighbourhood.held_out))

    def _right_among(self, passages: Sequence[Passage]) -> tuple[Passage, ...]:
        outcomes = self._are_right(passages)
        return tuple(p for p, is_right in zip(passages, outcomes, strict=True) if is_right)

    def _are_right(self, passages: Sequence[Passage]) -> list[bool]:
        """Tell for each passage whether it goes on as expected, by whoever answers it."""
        if not passages:
            return []
        encodings = [passage.encoding() for passage in passages]
        rows = self.rows_of(passages)
        return AnswerJudge(self.site).are_right(encodings, rows, range(len(encodings)))

    def rows_of(self, passages: Sequence[Passage]) -> Rows:
        """Return the rows of one passage or more, by the matrices as they are now. Passages of the
        latest neighbourhoods are read once."""
        state = self.site.edited.rows_state
        pending = [p for p in dict.fromkeys(passages) if (state, p) not in self._read]
        if pending:
            rows = self.site.rows_in_passes([passage.encoding() for passage in pending])
            parts = rows.split([passage.rows for passage in pending])
            self._read.update(zip(((state, p) for p in pending), parts, strict=True))
        return Rows.join(self._read[state, passage] for passage in passages)

    def probe_rows(self, neighbourhood: Neighbourhood) -> Rows | None:
        """Return the rows to measure from now on: the held-out prompts, and the positions behind
        the answer with an expected token; None if there are none."""
        passages = [*neighbourhood.held_out, *neighbourhood.behind]
        if not passages:
            return None
        rows = self.rows_of(passages)
        is_prompt = [True for passage in neighbourhood.held_out for _ in passage.said]
        is_said = [token != UNSAID for passage in neighbourhood.behind for token in passage.said]
        return rows[torch.tensor(is_prompt + is_said, dtype=torch.bool, device=rows.query.device)]

    def silent_rows(self, neighbourhood: Neighbourhood) -> Rows | None:
        """Return the rows of the passages on which the edit itself stays silent, read in a pass
        over them alone; None if there are none."""
        encodings = [passage.encoding() for passage in neighbourhood.silent]
        return self.site.rows(encodings) if encodings else None

    def harm(
        self,
        neighbourhoods: Mapping[str, Neighbourhood],
        ledger: Ledger,
        edits: int,
        *,
        spreads: bool = False,
    ) -> Harm | None:
        """Return the harm of the patches of so many edits, which the ledger has not followed yet;
        None if the held-out probes that they change are inside the budget of all these edits.
        `spreads`: they reach every text, and may use up `spread_max`."""
        entries = ledger.would_break(WATCHED)
        general = [entry for entry in entries if entry.role == WATCH]
        if (budget := self._exceeded(len(general), ledger, edits, spreads)) is not None:
            return Harm(
                f"it changes {len(general)} of {ledger.count(WATCH).total} general positions that "
                f"are held out, over {budget}: {self._told(general[0])}",
                tuple(entry.encoding for entry in general),
            )
        passages = [p for n in neighbourhoods.values() for p in n.held_out]
        misses = [
            p
            for p, is_right in zip(passages, self._are_right(passages), strict=True)
            if not is_right
        ]
        losses = [entry for entry in entries if entry.role == NEIGHBOUR]
        count = len(misses) + len(losses)
        if passages and count > self.config.neighbours_max * len(passages):
            example = self._shown(misses[0]) if misses else self._told(losses[0])
            return Harm(
                f"it changes {count} of {len(passages)} neighbours that are held out, over "
                f"neighbours_max = {self.config.neighbours_max}: {example}",
                (*(p.encoding() for p in misses), *(entry.encoding for entry in losses)),
            )
        return None

    def _exceeded(self, changed: int, ledger: Ledger, edits: int, spreads: bool) -> str | None:
        """Name the budget that so many changed positions of general text exceed; None if they are
        inside it."""
        config, count = self.config, ledger.count(WATCH)
        shares = edits if config.per_edit else 1
        allowed = config.watch_max * count.total * shares
        lost = count.total - count.right
        is_by_spread = spreads and config.spread_max * count.total - lost > allowed
        if is_by_spread:
            allowed = config.spread_max * count.total - lost
        if not changed or changed <= allowed:
            return None
        if is_by_spread:
            return f"spread_max = {config.spread_max}, of which {lost} are used"
        times = f" for each of {shares} edits" if shares > 1 else ""
        return f"watch_max = {config.watch_max}{times}"

    def _told(self, entry: LedgerEntry) -> str:
        encoding = entry.encoding
        return self._text(encoding.question.ids, encoding.targets)

    def _shown(self, passage: Passage) -> str:
        return self._text(passage.ids[: passage.first + 1], passage.said)

    def _text(self, question: Sequence[int], said: Sequence[int]) -> str:
        tokenizer = self.site.edited.tokenizer
        prefix = spelled(tokenizer, question)[-SHOWN_CHARACTERS:]
        seen = " behind its picture" if picture_keys(question) else ""
        return f"{prefix!r}{seen} no longer goes on with {tokenizer.decode(list(said))!r}"
