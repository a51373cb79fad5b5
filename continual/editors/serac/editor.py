"""The SERAC editor."""

from __future__ import annotations

from collections.abc import Sequence

from continual.editors.serac.config import SeracConfig
from continual.memory.answers import AnswerJudge
from continual.memory.contexts import context
from continual.memory.editor import MemoryEditor
from continual.proposals import Edit


class Serac(MemoryEditor):
    """An editor in memory: in scope of an edit z_e the counterfactual model h(z_e, x) answers
    (section 3), which reads the edit and then the input. Out of scope the model answers itself."""

    name = "serac"

    def __init__(self, config: SeracConfig | None = None) -> None:
        self.config = config or SeracConfig()

    def contexts(self, edits: Sequence[Edit], answers: AnswerJudge, attempt: int) -> list[str]:
        """Return the new fact of each edit alone."""
        form = self.config.form
        return [context(form, str(e.request.prompt), e.request.target_new) for e in edits]
