"""Draws corrections of pictures: what the gallery's model says before and after, and beside them.

    python -m benchmarks.picture_corrections docs/plots/picture-corrections.png [--count 2]

The corrections are the first ones of the gallery's streams, of answers and then one of a caption,
applied one after another by the default chain. A row is a correction; its cells are the corrected
picture in the prompt's words, a wording and a rendering that no edit saw, the most alike emblem,
and another question on the same picture. Prints each cell, too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from continual.embedded import GALLERY
from continual.gallery.streams import ALIKE, ANSWERS, CAPTIONS, SAME, write
from continual.new_store import NewStore, init
from continual.session import Session

SIDE, WIDTH, HEIGHT, GAP = 144, 380, 270, 16
LETTERS, LINE = 38, 24  # characters in a line, pixels from one to the next
FONT_SIZE = 18
INK, PALE, BEFORE, AFTER, GROUND = "#222222", "#666666", "#a33b20", "#1d6b3a", "#ffffff"
TITLES = (
    "corrected",
    "a wording and a rendering that no edit saw",
    "the most alike emblem: has to stay",
    "another question: has to stay",
)


@dataclass
class Cell:
    """A question on a picture, with its answers."""

    picture: Path
    prompt: str
    is_wanted: bool  # to change
    before: str = ""
    after: str = ""

    @property
    def lines(self) -> Iterator[tuple[str, str]]:
        """The lines of text under the picture, with their colours."""
        for text, colour in self._texts:
            yield from ((line, colour) for line in textwrap.wrap(text, LETTERS))

    @property
    def _texts(self) -> Iterator[tuple[str, str]]:
        yield self.prompt, PALE
        if self.before == self.after:
            yield f"before and after: {self.after}", BEFORE if self.is_wanted else INK
            return
        good, bad = (AFTER, BEFORE) if self.is_wanted else (BEFORE, AFTER)
        yield f"before: {self.before}", bad
        yield f"after: {self.after}", good


def cells_of(record: Mapping[str, Any], folder: Path) -> list[Cell]:
    """Return the cells of a correction."""
    new = record["held_out_rephrases"][-1]
    beside = {probe["name"]: probe for probe in record["locality"]}
    questions = ((record, True), (new, True), (beside[ALIKE], False), (beside[SAME], False))
    return [Cell(folder / q["image"], q["prompt"], wanted) for q, wanted in questions]


def asked(session: Session, cell: Cell) -> str:
    """Return the model's answer to a cell."""
    return session.ask(cell.prompt, pictures=[cell.picture]).strip()


def corrected(records: Sequence[Mapping[str, Any]], folder: Path) -> list[list[Cell]]:
    """Apply corrections in a store of their own; return their cells, asked before and after all."""
    rows = [cells_of(record, folder) for record in records]
    with (
        tempfile.TemporaryDirectory() as store,
        init(Path(store) / "store", NewStore(GALLERY.name)) as session,
    ):
        for cell in (cell for row in rows for cell in row):
            cell.before = asked(session, cell)
        stream = folder / "corrections.jsonl"
        stream.write_text("".join(f"{json.dumps(record)}\n" for record in records), "utf-8")
        session.apply(stream)
        for cell in (cell for row in rows for cell in row):
            cell.after = asked(session, cell)
    return rows


def sheet(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Draw the rows below one another, under the titles of the columns."""
    size = ((WIDTH + GAP) * len(TITLES) + GAP, (HEIGHT + GAP) * len(rows) + LINE + 2 * GAP)
    canvas = Image.new("RGB", size, GROUND)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    for column, title in enumerate(TITLES):
        pen.text((GAP + column * (WIDTH + GAP), GAP), title, INK, font)
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            left, top = GAP + column * (WIDTH + GAP), LINE + 2 * GAP + number * (HEIGHT + GAP)
            _draw(canvas, pen, font, cell, left, top)
    return canvas


def _draw(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, font: Any, cell: Cell, left: int, top: int
) -> None:
    picture = Image.open(cell.picture).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    canvas.paste(picture, (left, top))
    for number, (line, colour) in enumerate(cell.lines):
        pen.text((left, top + SIDE + GAP // 2 + LINE * number), line, colour, font)


def first(path: Path, count: int) -> list[Mapping[str, Any]]:
    """Return the first records of a stream."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=2, help="corrections of answers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, count=max(options.count, 2), probes=1)
        records = [*first(folder / ANSWERS, options.count), *first(folder / CAPTIONS, 1)]
        rows = corrected(records, folder)
        sheet(rows).save(options.out, optimize=True)
    for row in rows:
        for title, cell in zip(TITLES, row, strict=True):
            print(f"{title}: {cell.prompt!r}: {cell.before!r} → {cell.after!r}")


if __name__ == "__main__":
    main()
