"""Reads a picture as pixels: a path, a data URI, or the bytes of a file.

Every picture is input that may be broken or hostile: its size in bytes and in pixels is known
before it is decoded, and what Pillow cannot decode whole is refused. What comes back has one form:
upright, opaque, eight bits for each of red, green and blue, and no more than a million pixels.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from continual.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP")
BYTES_MAX = 32 << 20  # of a file
PIXELS_MAX = 40_000_000  # of a picture that comes in
KEPT_PIXELS_MAX = 1 << 20  # a larger picture is made smaller
GROUND = (255, 255, 255)  # behind transparent parts
META: Mapping[str, str] = {"kind": "picture"}
"""The meta of a picture's file in the store."""

_DATA = re.compile(r"data:([a-z]+/[a-z0-9.+-]+)?((?:;[a-z0-9-]+=[^;,]*)*)(;base64)?,", re.ASCII)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.ASCII | re.IGNORECASE)
_NAMED_MAX = 60  # characters of a name that a message repeats


class PictureError(RequestError):
    """A picture that cannot be taken in; the message names it, the fault, and a remedy."""


def read(source: object, folder: Path | None = None) -> Tensor:
    """Return a picture as pixels [height, width, 3] uint8. A relative path is one in `folder`.
    Raises PictureError."""
    if isinstance(source, bytes | bytearray):
        return decoded(bytes(source), f"the {len(source)} bytes given")
    if isinstance(source, Path):
        source = str(source)
    if not isinstance(source, str) or not source.strip():
        raise PictureError(
            f"a picture is a path, a data URI or bytes, and not {type(source).__name__}: give the "
            "path of a PNG, JPEG or WebP file"
        )
    if source[:5].lower() == "data:":
        return decoded(_of_data_uri(source), "the data URI")
    if _URL.match(source):
        raise PictureError(
            f"the picture {_named(source)} is an address, and nothing is fetched from the network: "
            "save it, and give its path"
        )
    return decoded(_of_file(source, folder), _named(source))


def decoded(data: bytes, name: str) -> Tensor:
    """Return the picture in the bytes of a file as pixels [height, width, 3] uint8. Raises
    PictureError, which says the picture's `name`."""
    if len(data) > BYTES_MAX:
        raise PictureError(
            f"the picture in {name} has {len(data)} bytes, more than the {BYTES_MAX} allowed: "
            "save it smaller, as a JPEG for example"
        )
    image_module, failures = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            with image_module.open(io.BytesIO(data), formats=FORMATS) as image:
                _require_few_pixels(image.size, name)
                _require_still(image, name)
                return _pixels(_reduced(_plain(image)))
    except (image_module.DecompressionBombError, image_module.DecompressionBombWarning):
        raise PictureError(
            f"the picture in {name} says that it has more than the {PIXELS_MAX} pixels allowed, "
            "and is not unpacked: save it smaller"
        ) from None
    except image_module.UnidentifiedImageError:
        raise PictureError(
            f"{name} is no picture in a known format: give a PNG, JPEG or WebP file"
        ) from None
    except failures as error:
        raise PictureError(
            f"the picture in {name} is damaged or cut short ({_told(error)}): copy it again"
        ) from None


def as_image(pixels: Tensor) -> Image:
    """Return pixels [height, width, 3] uint8 as an image of Pillow's."""
    image_module, _ = _pillow()
    image: Image = image_module.fromarray(pixels.numpy())
    return image


def as_png(pixels: Tensor, longest: int | None = None) -> bytes:
    """Return pixels as the bytes of a PNG file, made smaller if one side is over `longest`."""
    image = as_image(pixels)
    if longest is not None:
        image.thumbnail((longest, longest))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_uri(pixels: Tensor, longest: int | None = None) -> str:
    """Return pixels as a data URI of a PNG file; `longest` as in `as_png`."""
    return "data:image/png;base64," + base64.b64encode(as_png(pixels, longest)).decode("ascii")


def require_pillow() -> None:
    """Raise PictureError if Pillow is not installed."""
    _pillow()


def _pillow() -> tuple[Any, tuple[type[Exception], ...]]:
    """Import Pillow; return its `Image`, and the errors of files that it cannot decode. Raises
    PictureError if it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise PictureError(
            "pictures need Pillow, which is not installed: pip install 'cedit[pictures]'"
        ) from None
    import struct

    failures = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, KeyError)
    return Image, (*failures, TypeError, OverflowError, NotImplementedError, ArithmeticError)


def _of_data_uri(text: str) -> bytes:
    match = _DATA.match(text.lower()[:200])
    if match is None or not match[3]:
        raise PictureError(
            "the data URI of a picture is not as data:image/png;base64,… : give its bytes in base64"
        )
    if len(text) > BYTES_MAX * 4 // 3 + 200:
        raise PictureError(
            f"the data URI of a picture has {len(text)} characters, more than {BYTES_MAX} bytes "
            "take: save the picture smaller"
        )
    try:
        return base64.b64decode(text[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError(
            f"the data URI of a picture is no base64 ({error}): encode its bytes again"
        ) from None


def _of_file(source: str, folder: Path | None) -> bytes:
    name = _named(source)
    try:
        path = Path(source) if folder is None else folder / source
        if not path.exists():
            raise PictureError(f"there is no picture {name} ({_named(str(path))}): check the path")
        if not path.is_file():
            raise PictureError(f"the picture {name} is not a plain file: give the path of one")
        with path.open("rb") as file:
            return file.read(BYTES_MAX + 1)
    except (OSError, ValueError, RuntimeError) as error:
        cause = getattr(error, "strerror", None) or error
        raise PictureError(f"the picture {name} cannot be read ({cause}): check it") from None


def _require_few_pixels(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > PIXELS_MAX:
        raise PictureError(
            f"the picture in {name} has {width} × {height} pixels, more than the {PIXELS_MAX} "
            "allowed, and is not unpacked: save it smaller"
        )
    if width < 1 or height < 1:
        raise PictureError(f"the picture in {name} has no pixels: give another one")


def _require_still(image: Image, name: str) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise PictureError(
            f"the picture in {name} moves ({frames} frames): save the one that is meant"
        )


def _plain(image: Image) -> Image:
    """Return the image upright and opaque, in RGB."""
    from PIL import Image as image_module
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _in_eight_bits(image)
    if not (image.has_transparency_data or "A" in image.getbands()):
        return image.convert("RGB")
    image = image.convert("RGBA")
    ground = image_module.new("RGBA", image.size, (*GROUND, 255))
    return image_module.alpha_composite(ground, image).convert("RGB")


def _in_eight_bits(image: Image) -> Image:
    """Return a grey image of more than eight bits in eight."""
    import numpy
    from PIL import Image as image_module

    values = numpy.asarray(image).astype(numpy.float64)
    top = 65535.0 if image.mode != "F" else max(1.0, float(values.max(initial=1.0)))
    scaled = numpy.clip(numpy.nan_to_num(values) / top, 0, 1) * 255
    return image_module.fromarray(scaled.round().astype(numpy.uint8))


def _reduced(image: Image) -> Image:
    """Return the image with no more than KEPT_PIXELS_MAX pixels."""
    from PIL import Image as image_module

    width, height = image.size
    scale = math.sqrt(KEPT_PIXELS_MAX / (width * height))
    if scale >= 1:
        return image
    size = (max(1, math.floor(width * scale)), max(1, math.floor(height * scale)))
    if size[0] * size[1] > KEPT_PIXELS_MAX:  # one side was rounded up to a pixel
        size = (min(size[0], KEPT_PIXELS_MAX), min(size[1], KEPT_PIXELS_MAX))
    return image.resize(size, image_module.Resampling.LANCZOS)


def _pixels(image: Image) -> Tensor:
    """Return an RGB image as [height, width, 3] uint8."""
    import numpy
    import torch

    return torch.from_numpy(numpy.array(image, dtype=numpy.uint8))


def _named(source: str) -> str:
    return ascii(source if len(source) <= _NAMED_MAX else "…" + source[-_NAMED_MAX:])


def _told(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:_NAMED_MAX] or type(error).__name__
