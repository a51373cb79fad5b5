"""The models that come with the package: their names, their files, the settings of their stores.

Leaves a model's own text to its folder, which is imported when the text is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EmbeddedModel:
    """A model of the package, which stands in for a pretrained one if none is at hand."""

    name: str
    directory: Path
    task: Mapping[str, Any]  # the [task] table of a new store
    editors: Mapping[str, Mapping[str, Any]]  # the [editor.NAME] tables of a new store
    probes: Mapping[str, Path]  # by the name of the set
    corrections: Path  # they say what is not so: the model knows what is
    mistakes: Path  # corrections of what the model answers wrongly
    own_texts: str  # the class of the texts that it was trained on, behind its module

    def texts(self) -> Iterable[str]:
        """Return the texts that the model was trained on, for key statistics."""
        module, _, name = self.own_texts.rpartition(".")
        texts: Iterable[str] = getattr(import_module(module), name)()
        return texts


_FOLDER = Path(__file__).parent / "atlas"

ATLAS = EmbeddedModel(
    name="atlas",
    directory=_FOLDER / "model",
    task={"name": "causal", "terminator": "\n"},
    editors={
        "tpatcher": {
            "subject_margin": 0.5,
            "subject_copies": 0,
            "subject_reach": 0.5,
            "subject_norm_max": 4.0,
            "subject_whitening": 0.0,
        },
        "lookup": {"block": 2, "place": "end", "key": "ffn"},
    },
    probes={"train": _FOLDER / "train_probes.jsonl", "test": _FOLDER / "test_probes.jsonl"},
    corrections=_FOLDER / "corrections.jsonl",
    mistakes=_FOLDER / "mistakes.jsonl",
    own_texts="continual.atlas.texts.AtlasTexts",
)
"""Its queries hardly change with the wording, so a neuron needs no copies; its subjects have many
other facts, which a wide gate would take in. A look-up's keys tell these apart at the prompt's end,
in the last block but one."""

MODELS = {ATLAS.name: ATLAS}
"""The embedded models by name."""


def embedded(name: str | Path) -> EmbeddedModel | None:
    """Return the embedded model of a name; None for any other name or directory."""
    return MODELS.get(str(name))
