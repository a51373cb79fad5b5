"""Puts a trained model of the gallery into the package, if it passes the bars.

    python -m continual.gallery.pack DIR [--into FOLDER] [--count N] [--force]

DIR is the folder of `continual.gallery.train`. The model's directory is copied whole or not at all,
if it is small enough and answers well enough. `--force` packs a model that misses a bar.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import transformers as hf

from continual import own_models
from continual.embedded import GALLERY
from continual.gallery.measure import shares
from continual.gallery.scenes import Gallery

BYTES_MAX = 12 << 20
BARS: Mapping[str, float] = {
    "emblems": 0.95,
    "scenes": 0.95,
    "new wordings": 0.90,
    "new renderings": 0.90,
    "texts": 0.95,
    "new wordings of texts": 0.90,
}
"""The least shares of exact answers, by kind of test. Blind answers are printed, and have none."""


def missed(measured: Mapping[str, float]) -> Iterator[str]:
    """Yield a line for each bar that a model misses."""
    for name, bar in BARS.items():
        if measured[name] < bar:
            yield f"{name}: {measured[name]:.3f}, under {bar:.2f}"


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def pack(model: Path, into: Path) -> None:
    """Copy a model directory into the place of another, whole or not at all."""
    beside = into.with_name(f"{into.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(model, beside)
    shutil.rmtree(into, ignore_errors=True)
    beside.rename(into)


def measured_shares(model: Path, count: int) -> dict[str, float]:
    """Measure a model's directory on so many examples of each kind of test."""
    loaded = hf.LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    return shares(loaded, hf.AutoTokenizer.from_pretrained(model), Gallery(), count)


def main() -> int:
    """Run the command line; return 1 for a model that is not packed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="DIR")
    parser.add_argument("--into", type=Path, default=GALLERY.directory)
    parser.add_argument("--count", type=int, default=600, metavar="N", help="of each kind of test")
    parser.add_argument("--force", action="store_true", help="even if it misses a bar")
    options = parser.parse_args()
    model = options.run / own_models.FOLDER
    measured = measured_shares(model, options.count)
    for name, share in measured.items():
        print(f"{name:24s} {share:.4f}")
    faults = list(missed(measured))
    if (size := size_of(model)) > BYTES_MAX:
        faults.append(f"{size} bytes, over {BYTES_MAX}")
    for fault in faults:
        print(f"missed: {fault}", file=sys.stderr)
    if faults and not options.force:
        return 1
    pack(model, options.into)
    print(f"packed {size} bytes into {options.into}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
