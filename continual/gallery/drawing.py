"""Draws the gallery's pictures: the same content in eight renderings, one never trained.

A picture is drawn four times as large and made smaller, so that edges are smooth. Knows shapes,
colours and renderings; leaves what is shown to `scenes`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFilter

from continual.gallery.scenes import PLACES, Emblem, Scene

SIZE = 48  # pixels
SCALE = 4  # of the drawing
TRAINED_RENDERINGS = (
    "plain", "small", "tinted", "noisy", "scattered", "stretched", "slanted",
)  # fmt: skip
NEW_RENDERING = "tilted"
RENDERINGS = (*TRAINED_RENDERINGS, NEW_RENDERING)

RGB = {
    "red": (205, 40, 40),
    "green": (40, 150, 60),
    "blue": (50, 80, 205),
    "yellow": (240, 215, 50),
    "purple": (140, 50, 160),
    "orange": (240, 140, 30),
    "white": (245, 245, 245),
    "brown": (120, 75, 40),
}
GROUND = (184, 188, 192)
TILT_MAX = 14.0  # degrees
JITTER, SCATTER = 1.5, 4.5  # pixels by which things stand beside their places
STRETCH = (0.78, 1.0)  # of the width or the height
SLANT = (0.1, 0.25)  # of a pixel to the side for each pixel down, or down for each to the side

Point = tuple[float, float]


def drawn(content: Emblem | Scene, rendering: str, draw: random.Random) -> Image.Image:
    """Draw a picture, RGB of `SIZE` × `SIZE`; jitter, tint, noise, stretch, slant and tilt come
    from
    `draw`."""
    ground = _tint(draw) if rendering == "tinted" else GROUND
    canvas = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), ground)
    pen = ImageDraw.Draw(canvas)
    size = draw.uniform(0.62, 0.72) if rendering == "small" else draw.uniform(0.86, 0.96)
    jitter = SCATTER if rendering == "scattered" else JITTER
    if isinstance(content, Emblem):
        _draw_emblem(pen, content, size, jitter, draw)
    else:
        _draw_scene(pen, content, size, jitter, draw)
    if rendering == "stretched":
        canvas = _stretched(canvas, draw)
    if rendering == "slanted":
        canvas = _slanted(canvas, draw)
    if rendering == NEW_RENDERING:
        angle = draw.choice((-1, 1)) * draw.uniform(0.5, 1.0) * TILT_MAX
        canvas = canvas.rotate(angle, Image.Resampling.BICUBIC, fillcolor=ground)
        canvas = canvas.filter(ImageFilter.GaussianBlur(SCALE * 0.4))
    picture = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    return _noisy(picture, draw) if rendering == "noisy" else picture


def _tint(draw: random.Random) -> tuple[int, int, int]:
    """Draw a ground between grey and a pale colour."""
    return (draw.randint(140, 225), draw.randint(140, 225), draw.randint(140, 225))


def _noisy(picture: Image.Image, draw: random.Random) -> Image.Image:
    """Add grey noise to every pixel."""
    noise = Image.frombytes("L", (SIZE, SIZE), draw.randbytes(SIZE * SIZE)).convert("RGB")
    return Image.blend(picture, noise, draw.uniform(0.08, 0.2))


def _stretched(canvas: Image.Image, draw: random.Random) -> Image.Image:
    """Make the content narrower or flatter, on the same ground."""
    share, side = draw.uniform(*STRETCH), SIZE * SCALE
    width, height = draw.choice(((round(side * share), side), (side, round(side * share))))
    ground = Image.new("RGB", canvas.size, canvas.getpixel((0, 0)))
    content = canvas.resize((width, height), Image.Resampling.BICUBIC)
    ground.paste(content, ((side - width) // 2, (side - height) // 2))
    return ground


def _slanted(canvas: Image.Image, draw: random.Random) -> Image.Image:
    """Push the content's rows or columns aside, the more the farther from the middle."""
    by = draw.choice((-1, 1)) * draw.uniform(*SLANT)
    half = SIZE * SCALE / 2
    ways = ((1.0, by, -by * half, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, by, 1.0, -by * half))
    ground = canvas.getpixel((0, 0))
    resampling = Image.Resampling.BICUBIC
    affine = Image.Transform.AFFINE
    return canvas.transform(canvas.size, affine, draw.choice(ways), resampling, fillcolor=ground)


def _draw_emblem(
    pen: ImageDraw.ImageDraw, emblem: Emblem, size: float, jitter: float, draw: random.Random
) -> None:
    middle = _jittered((SIZE / 2, SIZE / 2), max(2.5, jitter), draw)
    radius = SIZE / 2 * size
    OUTLINES_DRAWN[emblem.outline](pen, middle, radius, RGB[emblem.field])
    SHAPES_DRAWN[emblem.charge](pen, middle, radius * 0.52, RGB[emblem.tint])


def _draw_scene(
    pen: ImageDraw.ImageDraw, scene: Scene, size: float, jitter: float, draw: random.Random
) -> None:
    for place, thing in scene.things.items():
        column, row = PLACES.index(place) % 2, PLACES.index(place) // 2
        middle = _jittered((SIZE * (1 + 2 * column) / 4, SIZE * (1 + 2 * row) / 4), jitter, draw)
        SHAPES_DRAWN[thing.shape](pen, middle, SIZE / 4 * size * 0.86, RGB[thing.colour])


def _jittered(middle: Point, by: float, draw: random.Random) -> Point:
    return middle[0] + draw.uniform(-by, by), middle[1] + draw.uniform(-by, by)


# -- shapes, in units of the radius around the middle

Drawer = Callable[[ImageDraw.ImageDraw, Point, float, tuple[int, int, int]], None]


def _polygon(points: Sequence[Point]) -> Drawer:
    def draw_it(
        pen: ImageDraw.ImageDraw, middle: Point, radius: float, colour: tuple[int, int, int]
    ) -> None:
        pen.polygon([_at(middle, radius, point) for point in points], fill=colour)

    return draw_it


def _at(middle: Point, radius: float, point: Point) -> Point:
    return SCALE * (middle[0] + radius * point[0]), SCALE * (middle[1] + radius * point[1])


def _box(middle: Point, radius: float) -> tuple[float, float, float, float]:
    return (*_at(middle, radius, (-1, -1)), *_at(middle, radius, (1, 1)))


def _disc(
    pen: ImageDraw.ImageDraw, middle: Point, radius: float, colour: tuple[int, int, int]
) -> None:
    pen.ellipse(_box(middle, radius), fill=colour)


def _ring(
    pen: ImageDraw.ImageDraw, middle: Point, radius: float, colour: tuple[int, int, int]
) -> None:
    pen.ellipse(_box(middle, radius), outline=colour, width=round(SCALE * radius * 0.42))


def _crescent(
    pen: ImageDraw.ImageDraw, middle: Point, radius: float, colour: tuple[int, int, int]
) -> None:
    outer = [_on_circle(a, 1.0, 0.0) for a in range(50, 311, 10)]
    inner = [_on_circle(a, 0.78, 0.42) for a in range(290, 69, -10)]
    pen.polygon([_at(middle, radius, point) for point in (*outer, *inner)], fill=colour)


def _on_circle(angle: float, radius: float, shift: float) -> Point:
    turn = math.radians(angle)
    return shift + radius * math.cos(turn), radius * math.sin(turn)


def _regular(count: int, turn: float = -90.0, radii: Sequence[float] = (1.0,)) -> list[Point]:
    """Return a regular polygon; radii that alternate make a star."""
    return [_on_circle(turn + 360.0 * i / count, radii[i % len(radii)], 0.0) for i in range(count)]


_CROSS: list[Point] = [
    (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
    (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3),
]  # fmt: skip
_SALTIRE = [((x - y) * 0.78, (x + y) * 0.78) for x, y in _CROSS]

SHAPES_DRAWN: dict[str, Drawer] = {
    "circle": _disc,
    "square": _polygon([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]),
    "triangle": _polygon([(0, -1), (0.95, 0.8), (-0.95, 0.8)]),
    "cross": _polygon(_CROSS),
    "star": _polygon(_regular(10, radii=(1.05, 0.45))),
    "ring": _ring,
    "crescent": _crescent,
    "bar": _polygon([(-1.2, -0.3), (1.2, -0.3), (1.2, 0.3), (-1.2, 0.3)]),
    "chevron": _polygon([(0, -0.8), (1, 0.4), (1, 1), (0, -0.1), (-1, 1), (-1, 0.4)]),
    "arrow": _polygon(
        [
            (0, -1.1),
            (0.8, -0.1),
            (0.28, -0.1),
            (0.28, 1.1),
            (-0.28, 1.1),
            (-0.28, -0.1),
            (-0.8, -0.1),
        ]
    ),
    "saltire": _polygon(_SALTIRE),
}

OUTLINES_DRAWN: dict[str, Drawer] = {
    "shield": _polygon([(-0.85, -0.95), (0.85, -0.95), (0.85, 0.2), (0, 1), (-0.85, 0.2)]),
    "disc": _disc,
    "diamond": _polygon([(0, -1.08), (1.08, 0), (0, 1.08), (-1.08, 0)]),
    "hexagon": _polygon(_regular(6)),
    "banner": _polygon([(-0.75, -1), (0.75, -1), (0.75, 1), (0, 0.6), (-0.75, 1)]),
    "square": _polygon([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
}
