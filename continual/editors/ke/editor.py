"""The KnowledgeEditor editor: an edit's gradient, gated by a network that reads the edit."""

from __future__ import annotations

from continual.editors.ke.config import KeConfig
from continual.editors.ke.network import KeNetwork
from continual.gradients.editor import EditRows
from continual.gradients.networks import NetworkInput
from continual.gradients.side_paths import SidePath
from continual.gradients.trained_editor import FactoredEditor
from continual.proposals import EditContext


class Ke(FactoredEditor[KeConfig, KeNetwork]):
    """A trained gate on an edit's gradient, edit by edit."""

    name = "ke"
    network_type = KeNetwork

    def __init__(self, config: KeConfig | None = None) -> None:
        super().__init__(config or KeConfig())

    def factors(self, path: str, part: EditRows, context: EditContext) -> SidePath:
        """See `FactoredEditor.factors`: T + 1 outer products."""
        network = self.network(context)
        condition = network.condition(context.site, part.texts[0])
        return network.factors(path, NetworkInput(part.rows, condition))
