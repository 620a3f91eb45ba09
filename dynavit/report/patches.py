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

_VEIL, _VEIL_STRENGTH = 226.0, 0.85  # what dropped patches fade to, and how far


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
    pixels, mask = as_array(image), as_array(kept).astype(bool)
    shown = _enlarged(mask, grid_size, _patch_size("draw_kept", pixels, mask, grid_size))[..., None]
    grey = pixels.mean(axis=2, keepdims=True)  # without colour, so that nothing dropped looks kept
    veiled = _VEIL_STRENGTH * _VEIL + (1 - _VEIL_STRENGTH) * grey
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
        InputError: the picture does not divide into the grid, or the groups are of another grid.
    """
    pixels, groups = as_array(image), as_array(groups)
    (rows, columns), (height, width) = grid_size, _patch_size("draw_groups", pixels, groups, grid_size)
    colours = pixels.reshape(rows, height, columns, width, 3).mean(axis=(1, 3)).reshape(-1, 3)
    slots = groups + 1  # bincount takes no -1
    sizes = np.bincount(slots).clip(min=1)
    means = np.stack([np.bincount(slots, colours[:, channel]) / sizes for channel in range(3)], axis=1)
    painted = _enlarged(means[slots].round().astype(np.uint8), grid_size, (height, width))
    held = _enlarged(groups >= 0, grid_size, (height, width))[..., None]
    return np.where(held, painted, draw_kept(pixels, groups >= 0, grid_size))


def as_array(value: ArrayLike) -> NDArray[Any]:
    """Return a tensor, wherever it is, or anything else as an array."""
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _patch_size(function: str, pixels: NDArray[Any], mask: NDArray[Any], grid_size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a patch in pixels.

    Raises:
        InputError: this is no picture, or does not divide into the grid, or the mask is of another grid.
    """
    rows, columns = grid_size
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(f"{function} needs an (H, W, 3) uint8 image, not {pixels.shape} {pixels.dtype}.")
    if mask.shape != (rows * columns,) or pixels.shape[0] % rows or pixels.shape[1] % columns:
        raise InputError(
            f"{function}: an image of {pixels.shape[0]}x{pixels.shape[1]} pixels and a mask of shape "
            f"{mask.shape} do not fit a grid of {rows} x {columns} patches."
        )
    return pixels.shape[0] // rows, pixels.shape[1] // columns


def _enlarged(patches: NDArray[Any], grid_size: tuple[int, int], size: tuple[int, int]) -> NDArray[Any]:
    """Repeat a value for each patch ``(N, ...)`` over its pixels: ``(H, W, ...)``."""
    grid = patches.reshape(*grid_size, *patches.shape[1:])
    return grid.repeat(size[0], axis=0).repeat(size[1], axis=1)
