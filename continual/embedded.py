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
    own_texts: str  # the class of the texts that it was trained on, behind its module
    training: str  # the command that trains it, where it does not come with the package

    @property
    def is_here(self) -> bool:
        """True if the model's files are in the package."""
        return (self.directory / "config.json").is_file()

    def texts(self) -> Iterable[str]:
        """Return the texts that the model was trained on, for key statistics."""
        module, _, name = self.own_texts.rpartition(".")
        texts: Iterable[str] = getattr(import_module(module), name)()
        return texts


@dataclass(frozen=True)
class EmbeddedAtlas(EmbeddedModel):
    """The model of texts, with its streams."""

    corrections: Path  # they say what is not so: the model knows what is
    mistakes: Path  # corrections of what the model answers wrongly


_ENGINE = Path(__file__).parent
_FOLDER = _ENGINE / "atlas"

ATLAS = EmbeddedAtlas(
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
    training="python -m continual.atlas.train DIR",
)
"""Its queries hardly change with the wording, so a neuron needs no copies; its subjects have many
other facts, which a wide gate would take in. A look-up's keys tell these apart at the prompt's end,
in the last block but one."""

GALLERY = EmbeddedModel(
    name="gallery",
    directory=_ENGINE / "gallery" / "model",
    task={"name": "multimodal", "terminator": "\n"},
    editors={},
    probes={},
    own_texts="continual.gallery.texts.GalleryTexts",
    training=(
        "python -m continual.gallery.train DIR --steps 5000 && python -m continual.gallery.pack DIR"
    ),
)
"""It sees. Its streams and probes show pictures, and are drawn when they are asked for; see
`gallery.streams`."""

MODELS: dict[str, EmbeddedModel] = {m.name: m for m in (ATLAS, GALLERY) if m.is_here}
"""The embedded models by name, as far as they come with the package."""


def embedded(name: str | Path) -> EmbeddedModel | None:
    """Return the embedded model of a name; None for any other name or directory."""
    return MODELS.get(str(name))
