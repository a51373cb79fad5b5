"""Write your own editor: one gated neuron for each token of the answer, in forty lines.

    python examples/own_editor.py

An editor gets the model at head and a batch of edits, and proposes a patch. It writes nothing:
the engine puts the patch on, proves that the answers come out, measures everything else again, and
keeps the patch or takes it off. To ship an editor as a package, see docs/plugins.md.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy

import cedit
from continual.choices import EDITORS
from continual.patches.neuron import NeuronPatch
from continual.proposals import Edit, Proposal
from continual.registry import EditorEntry
from continual.tables import SettingsTable


@dataclass(frozen=True)
class NudgeConfig(SettingsTable):
    """The table [editor.nudge] of cedit.toml."""

    table: ClassVar[str] = "editor.nudge"

    margin: float = 0.1  # a neuron fires where q·k > 1 - margin; on its own prompt q·k = 1
    steps: int = 60  # of Adam, to find a value
    rate: float = 0.1


class Nudge:
    """At the last FFN the model has a query q and a residual sum h for each token that it is about
    to say. A neuron adds relu(q·k + b)·v to h: its key says where, its value says what."""

    name = "nudge"
    attempts = 1  # budgets to try
    tolerance = 0.0  # the share of a batch that may stay wrong
    splits = crowds = narrows = False  # no use in trying a batch in parts, or an edit again

    def __init__(self, config: NudgeConfig) -> None:
        self.config = config

    def edit(self, edits: Sequence[Edit], context: Any) -> Proposal:
        """Propose a neuron for each token of the edits' answers."""
        site, rows = context.site, [edit.rows[0] for edit in edits]  # [0]: of the prompt itself
        query = torch.cat([r.query for r in rows])  # [n, d]
        hidden = torch.cat([r.hidden for r in rows])  # [n, d]
        targets = torch.cat([r.targets for r in rows])  # [n]
        patch = NeuronPatch(
            block=site.block,
            keys=query / query.square().sum(1, keepdim=True),
            bias=torch.full((len(query),), self.config.margin - 1.0),
            values=self._values(site, hidden, targets) / self.config.margin,
            owners=tuple(e.id for e, r in zip(edits, rows, strict=True) for _ in range(len(r))),
        )
        return Proposal(patch)

    def objection(self, patch: Any, edits: Sequence[Edit], context: Any) -> str | None:
        """Say why a patch is over the budget. There is none here."""
        return None

    def _values(self, site: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Find what to add to each residual sum [n, d] so that the model says the target."""
        with torch.enable_grad():
            values = torch.zeros_like(hidden, requires_grad=True)
            optimizer = torch.optim.Adam([values], lr=self.config.rate)
            for _ in range(self.config.steps):
                optimizer.zero_grad()
                cross_entropy(site.logits(hidden + values), targets).backward()
                optimizer.step()
        return values.detach()


# The registry imports an editor when it is asked for, by this path.
EDITORS.add(EditorEntry("nudge", f"{__name__}:Nudge", "a neuron for each token, as it comes"))

with (
    tempfile.TemporaryDirectory() as folder,
    cedit.create(Path(folder) / "store", watch={"texts": 0, "neighbours": 0}) as session,
):
    prompt = "The main language of Belarus is"
    print("before:", session.ask(prompt))
    (step,) = session.apply([{"prompt": prompt, "target_new": "Belarusian"}], editor="nudge")
    (outcome,) = step.outcomes
    print(f"{outcome.outcome} by {outcome.editor}: {step.patch_bytes} bytes")
    print("after:", session.ask(prompt))
    print("a neighbour:", session.ask("The main language of Peru is"))

    # The engine has measured what the patch does to all else, and can take it off again.
    print(f"TestR: {session.status()['TestR']:.3f}")
    session.rollback("base")
    print("rolled back:", session.ask(prompt))
