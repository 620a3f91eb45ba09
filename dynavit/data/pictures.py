"""Reading pictures: whatever people bring, as the pixels that every tool sees."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image
from PIL.Image import Transpose
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

# what Pillow raises for files that are missing, cut short, altered, or no images at all
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

MODES: Mapping[int, str] = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name of a picture by its number of channels: grey, colours, and colours with opacity."""

_WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_DECLARED = ((340, 341), (280, 281))  # TIFF's tags SMinSampleValue and SMaxSampleValue, MinSampleValue and ...
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def read_picture(file: str | os.PathLike[str] | IO[bytes], channels: int = 3) -> Image.Image:
    """Open a picture and convert it: :func:`open_picture`, then :func:`convert_picture`.

    Raises:
        One of :data:`UNREADABLE`: it cannot be read, or what its values mean is not known.
    """
    return convert_picture(open_picture(file), channels)


def open_picture(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Open and decode a picture as it is; of several frames, the first.

    Raises:
        One of :data:`UNREADABLE`: it is missing, damaged, no picture, or a pipe or device.
    """
    if isinstance(file, str | os.PathLike) and os.path.exists(file) and not os.path.isfile(file):
        raise OSError("it is no file, but a folder, named pipe, socket or device")  # reading a pipe would never end
    with _foreign_errors(), Image.open(file) as image:
        image.load()
        return image


def convert_picture(image: Image.Image, channels: int = 3) -> Image.Image:
    """Convert a picture of any mode to 8 bits of grey (1 channel), RGB (3) or RGBA (4), upright.

    It is turned as its EXIF orientation tag says. Transparent pixels show a white background; with 4 channels the
    opacity is kept instead, 255 where the picture has none.

    Values with more than 8 bits follow one rule: where their range is known, it is scaled to 0..255; where it is not,
    the picture counts as unreadable, instead of becoming black or white. Known are

    - the range that a TIFF file states in its tags (S)MinSampleValue and (S)MaxSampleValue, if all values lie in it;
    - the range of unsigned integers of up to 16 bits. But a picture that uses less than a sixteenth of 16 bits was
      mostly taken with fewer (a camera with 12, for example), nobody knows how many, and scaled it would be nearly
      black: that range is not known, unless all its pixels are alike.

    Not known are those of floating-point numbers, of integers with a sign, and of 32 bits.

    Raises:
        One of :data:`UNREADABLE`: it cannot be decoded, or the range is not known; the message then names mode,
            minimum and maximum.

    Example:
        >>> convert_picture(Image.new("I;16", (1, 1), 65535)).getpixel((0, 0))
        (255, 255, 255)
        >>> convert_picture(Image.new("LA", (1, 1), (0, 51)), channels=1).getpixel((0, 0))
        204
    """
    with _foreign_errors():
        image.load()
        if 0 in image.size:
            raise ValueError(f"it has {image.width} x {image.height} pixels")
        turn = _turn(image)
        picture = _in_8_bits(image) if image.mode in _WIDE else image
        if picture.mode == "La":  # which converts to nothing else
            picture = picture.convert("LA")
        if channels != 4 and picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        if picture.mode not in ("1", "L", MODES[channels]):  # not every mode converts to grey
            picture = picture.convert("RGBA" if channels == 4 else "RGB")
        if picture.mode != MODES[channels]:
            picture = picture.convert(MODES[channels])
        if turn is not None:
            picture = picture.transpose(turn)
            picture.info = {}  # the tag is no longer true
        return picture


def _turn(image: Image.Image) -> Transpose | None:
    # not ImageOps.exif_transpose: it writes all tags anew, and fails on those that Pillow cannot write
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))  # type: ignore[arg-type]
    except Exception:  # damaged EXIF data, for which Pillow has no one error, say nothing
        return None


def _in_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    least, most = _known_range(image.mode, tags, float(values.min()), float(values.max()))
    grey = np.rint((values.astype(np.float64) - least) * (255 / (most - least))).astype(np.uint8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # least is white, which Pillow heeds for 8 bits only
        grey = 255 - grey
    return Image.fromarray(grey)


def _known_range(mode: str, tags: Mapping[int, Any], low: float, high: float) -> tuple[float, float]:
    """Return the range that values from ``low`` to ``high`` are of."""
    for least_tag, most_tag in _DECLARED:
        if most_tag in tags:
            least, most = float(_first(tags.get(least_tag, 0))), float(_first(tags[most_tag]))
            if least <= low and high <= most and least < most:
                return least, most
    bits = int(_first(tags.get(BITSPERSAMPLE, 16)))
    unsigned = mode != "F" and _first(tags.get(SAMPLEFORMAT, 1)) == 1
    if unsigned and bits <= 16 and low >= 0 and high < 2**bits and (bits < 16 or low == high or high >= 4096):
        return 0, 2**bits - 1
    raise ValueError(
        f"its values (mode {mode}) go from {low:g} to {high:g}, and which of them are black and white is not known; "
        f"scale them and save the picture with 8 bits, or with 16 of which it uses the whole range"
    )


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


@contextmanager
def _foreign_errors() -> Iterator[None]:
    """Pillow's readers answer damaged files with errors of any type: make them one of UNREADABLE."""
    try:
        yield
    except UNREADABLE:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
