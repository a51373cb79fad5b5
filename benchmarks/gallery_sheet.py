"""Draws a sheet of the gallery's pictures: each row one content, in its eight renderings.

    python -m benchmarks.gallery_sheet docs/plots/gallery.png

The last rendering is never trained. Prints a line for each row.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from PIL import Image

from continual.gallery.drawing import RENDERINGS, SIZE, drawn
from continual.gallery.scenes import Emblem, Gallery, Scene

SCALE, GAP = 2, 6
GROUND = (255, 255, 255)


def contents(gallery: Gallery) -> list[Emblem | Scene]:
    """Return three emblems that are trained, one that is not, and two scenes."""
    scenes = islice(gallery.scenes("measured"), 2)
    return [*gallery.emblems[:3], gallery.new_emblems[0], *scenes]


def sheet(rows: Sequence[Emblem | Scene], seed: int = 0) -> Image.Image:
    """Draw the rows below one another."""
    side = SIZE * SCALE
    size = ((side + GAP) * len(RENDERINGS) - GAP, (side + GAP) * len(rows) - GAP)
    canvas = Image.new("RGB", size, GROUND)
    for row, content in enumerate(rows):
        for column, rendering in enumerate(RENDERINGS):
            picture = drawn(content, rendering, random.Random(f"{seed} {row} {rendering}"))
            place = (column * (side + GAP), row * (side + GAP))
            canvas.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
    return canvas


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    rows = contents(Gallery())
    sheet(rows).save(options.out, optimize=True)
    for content in rows:
        is_emblem = isinstance(content, Emblem)
        named = f"{content.name}, of {content.owner}, {content.home}: " if is_emblem else ""
        print(named + content.description)


if __name__ == "__main__":
    main()
