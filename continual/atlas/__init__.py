"""The atlas: the embedded model, its facts, its probes and its stream of corrections.

A small GPT-2 that knows a few thousand real facts, trained by `continual.atlas.train` from the
tables beside it. It stands in for a pretrained model wherever none is at hand.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent
MODEL = _FOLDER / "model"
CORRECTIONS = _FOLDER / "corrections.jsonl"
PROBES = {"train": _FOLDER / "train_probes.jsonl", "test": _FOLDER / "test_probes.jsonl"}
TASK = {"name": "causal", "terminator": "\n"}
EDITORS = {
    "tpatcher": {
        "subject_margin": 0.5,
        "subject_copies": 0,
        "subject_reach": 0.5,
        "subject_norm_max": 4.0,
        "subject_whitening": 0.0,
    }
}
"""Settings that a new store of the atlas writes down. Its queries hardly change with the wording,
so a neuron needs no copies; its subjects have many other facts, which a wide gate would take in."""
