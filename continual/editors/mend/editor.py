"""The MEND editor: the updates of a trained network, as published or solved with a memory."""

from __future__ import annotations

from continual.editors.mend.config import MendConfig
from continual.editors.mend.network import MendNetwork
from continual.gradients.editor import EditRows
from continual.gradients.side_paths import SidePath
from continual.gradients.trained_editor import FactoredEditor
from continual.proposals import EditContext


class Mend(FactoredEditor[MendConfig, MendNetwork]):
    """A trained map from an edit's gradient to its update, edit by edit."""

    name = "mend"
    network_type = MendNetwork

    def __init__(self, config: MendConfig | None = None) -> None:
        super().__init__(config or MendConfig())

    def factors(self, path: str, part: EditRows, context: EditContext) -> SidePath:
        """See `FactoredEditor.factors`: ũᵀ and −α·δ̃."""
        return self.network(context).factors(path, part.rows[path])
