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
