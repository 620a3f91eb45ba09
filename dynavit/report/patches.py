"""One picture and what became of its patches.

Shapes: H and W pixels, N patches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dynavit.errors import InputError

Picture = NDArray[np.uint8]

_VEIL = 226.0  # what dropped patches fade to


def draw_kept(image: ArrayLike, kept: ArrayLike, grid_size: tuple[int, int], strength: float = 0.85) -> Picture:
    """Fade the dropped patches of a picture to light grey; kept ones stay as they are.

    Patches share the picture evenly, also where the model's own overlap or leave a border.

    Args:
        image: ``(H, W, 3)`` uint8.
        kept: ``(N,)`` bool, row by row.
        grid_size: rows and columns of patches.
        strength: how far they fade, from 0, where they lose their colours alone, to 1.

    Returns:
        ``(H, W, 3)`` uint8, a new array.

    Raises:
        InputError: no picture, or the mask is of another grid.
    """
    pixels, mask = as_array(image), as_array(kept).astype(bool)
    shown = mask[_patches_of("draw_kept", pixels, mask, grid_size)][..., None]
    grey = pixels.mean(axis=2, keepdims=True)  # without colour, so that nothing dropped looks kept
    veiled = strength * _VEIL + (1 - strength) * grey
    return np.where(shown, pixels, veiled.round().astype(np.uint8))


def draw_groups(image: ArrayLike, groups: ArrayLike, grid_size: tuple[int, int]) -> Picture:
    """Paint each patch of a picture in the mean colour of all patches of its group, as ToMe's pictures do.

    Args:
        image: ``(H, W, 3)`` uint8.
        groups: ``(N,)`` int, equal numbers for patches that share a token; those at -1 were dropped and fade.
        grid_size: rows and columns of patches.

    Returns:
        ``(H, W, 3)`` uint8, a new array.

    Raises:
        InputError: no picture, or the groups are of another grid.
    """
    pixels, groups = as_array(image), as_array(groups)
    slots = groups[_patches_of("draw_groups", pixels, groups, grid_size)] + 1  # bincount takes no -1
    sizes = np.bincount(slots.ravel()).clip(min=1)
    sums = [np.bincount(slots.ravel(), pixels[..., channel].ravel()) for channel in range(3)]
    means = (np.stack(sums, axis=1) / sizes[:, None]).round().astype(np.uint8)
    return np.where(slots[..., None] > 0, means[slots], draw_kept(pixels, groups >= 0, grid_size))


def as_array(value: ArrayLike) -> NDArray[Any]:
    """Return a tensor, wherever it is, or anything else as an array."""
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _patches_of(function: str, pixels: NDArray[Any], mask: NDArray[Any], grid_size: tuple[int, int]) -> NDArray[Any]:
    """Return the number of the patch that each pixel belongs to, ``(H, W)``.

    Raises:
        InputError: this is no picture, or smaller than the grid, or the mask is of another grid.
    """
    rows, columns = grid_size
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(f"{function} needs an (H, W, 3) uint8 image, not {pixels.shape} {pixels.dtype}.")
    height, width = pixels.shape[:2]
    if mask.shape != (rows * columns,) or height < rows or width < columns:
        raise InputError(
            f"{function}: an image of {height}x{width} pixels and a mask of shape {mask.shape} do not fit a grid of "
            f"{rows} x {columns} patches."
        )
    return np.arange(height)[:, None] * rows // height * columns + np.arange(width) * columns // width
