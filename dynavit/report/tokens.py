"""Pictures of the tokens that were kept.

Shapes: B images, H and W pixels, N patches, S stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from dynavit.errors import InputError

Picture = NDArray[np.uint8]

_VEIL, _VEIL_STRENGTH = 226.0, 0.85  # what dropped patches fade to, and how far
_READABLE = 192  # pixels; smaller pictures are enlarged to about this
_MARGIN, _GAP = 16, 12
_INK, _QUIET = (36, 41, 47), (100, 108, 118)


def draw_kept(image: ArrayLike, kept: ArrayLike, grid_size: tuple[int, int]) -> Picture:
    """Fade the dropped patches of a picture to light grey; kept ones stay as they are.

    Args:
        image: ``(H, W, 3)`` uint8.
        kept: ``(N,)`` bool, row by row.
        grid_size: rows and columns of patches.

    Returns:
        ``(H, W, 3)`` uint8, a new array.

    Raises:
        InputError: the picture does not divide into the grid, or the mask is of another grid.
    """
    pixels, mask = _array(image), _array(kept).astype(bool)
    rows, columns = grid_size
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(f"draw_kept needs an (H, W, 3) uint8 image, not {pixels.shape} {pixels.dtype}.")
    if mask.shape != (rows * columns,) or pixels.shape[0] % rows or pixels.shape[1] % columns:
        raise InputError(
            f"draw_kept: an image of {pixels.shape[0]}x{pixels.shape[1]} pixels and a mask of shape "
            f"{mask.shape} do not fit a grid of {rows} x {columns} patches."
        )
    patch = (pixels.shape[0] // rows, pixels.shape[1] // columns)
    shown = np.kron(mask.reshape(rows, columns), np.ones(patch, dtype=bool))[..., None]
    grey = pixels.mean(axis=2, keepdims=True)  # without colour, so that nothing dropped looks kept
    veiled = _VEIL_STRENGTH * _VEIL + (1 - _VEIL_STRENGTH) * grey
    return np.where(shown, pixels, veiled.round().astype(np.uint8))


def kept_token_grid(
    images: Sequence[ArrayLike],
    masks_per_stage: Sequence[ArrayLike],
    grid_size: tuple[int, int],
    titles: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Draw one row an image: the image itself, then what is left of it after each stage.

    Args:
        images: B pictures ``(H, W, 3)`` uint8 of one size.
        masks_per_stage: S masks ``(B, N)`` bool, as ``trace.masks`` holds them.
        grid_size: rows and columns of patches.
        titles: of the ``1 + S`` columns; "input", "stage 1: 32 of 64" ... if None.
        captions: a line below each row.
        scale: enlarge by this factor, without smoothing; small pictures up to about 192 pixels if None.

    Raises:
        InputError: numbers or shapes that do not belong together.
    """
    pictures = [_array(image) for image in images]
    masks = [_array(mask).astype(bool) for mask in masks_per_stage]
    if not pictures or any(picture.shape != pictures[0].shape for picture in pictures):
        raise InputError("kept_token_grid needs one or more images, all of one size.")
    if any(mask.ndim != 2 or len(mask) != len(pictures) for mask in masks):
        shapes = [mask.shape for mask in masks]
        raise InputError(f"kept_token_grid: masks {shapes} for {len(pictures)} images; each is (images, N).")
    titles = _default_titles(masks) if titles is None else titles
    if len(titles) != 1 + len(masks) or (captions is not None and len(captions) != len(pictures)):
        raise InputError("kept_token_grid needs a title for the input and each stage, a caption an image.")

    height, width = pictures[0].shape[:2]
    scale = scale or max(1, round(_READABLE / max(height, width)))
    height, width = height * scale, width * scale
    font, small = _font(14), _font(12)
    cell = max([width, *(int(font.getlength(title)) + 1 for title in titles)])
    row_height = height + (28 if captions else 0) + _GAP
    size = (
        2 * _MARGIN + len(titles) * (cell + _GAP) - _GAP,
        2 * _MARGIN + 26 + len(pictures) * row_height - _GAP,
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        middle = _MARGIN + column * (cell + _GAP) + cell // 2
        draw.text((middle, _MARGIN + 16), title, fill=_INK, font=font, anchor="ms")
    for row, picture in enumerate(pictures):
        top = _MARGIN + 26 + row * row_height
        for column, mask in enumerate([None, *masks]):
            shown = picture if mask is None else draw_kept(picture, mask[row], grid_size)
            enlarged = Image.fromarray(shown).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (_MARGIN + column * (cell + _GAP) + (cell - width) // 2, top))
        if captions:
            line = _shortened(captions[row], small, size[0] - 2 * _MARGIN)
            left = _MARGIN + (cell - width) // 2
            draw.text((left, top + height + 17), line, fill=_QUIET, font=small, anchor="ls")
    return canvas


def _default_titles(masks: Sequence[NDArray[np.bool_]]) -> list[str]:
    titles = ["input"]
    for stage, mask in enumerate(masks, start=1):
        least, most = mask.sum(axis=1).min(), mask.sum(axis=1).max()
        count = f"{least}" if least == most else f"{least}-{most}"
        titles.append(f"stage {stage}: {count} of {mask.shape[1]}")
    return titles


def _font(size: int) -> Any:
    """matplotlib's DejaVu Sans: Pillow's own font is ASCII, and file names and labels are not."""
    import matplotlib  # a large import, needed here alone

    try:
        return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
    except OSError:  # some distributions package the fonts elsewhere
        return ImageFont.load_default(size)


def _shortened(text: str, font: Any, width: int) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _array(value: ArrayLike) -> NDArray[Any]:
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
