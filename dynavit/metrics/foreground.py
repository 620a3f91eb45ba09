"""Whether the kept tokens are the ones that show the object.

Shapes: B batch, N patch tokens, H and W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dynavit.errors import InputError


def foreground_recall(kept: Tensor, foreground: Tensor) -> Tensor:
    """Return the share of the foreground that was kept, out of what could have been.

    Kept foreground tokens over ``min(tokens kept, foreground tokens)``: 1 is reached by keeping only
    foreground when little is kept, and all of it when much is. A random choice is expected to reach
    the larger of the fraction kept and the fraction that is foreground.

    Args:
        kept: ``(B, N)`` bool.
        foreground: ``(B, N)`` bool.

    Returns:
        ``(B,)`` fp32 in [0, 1]; NaN where an image has no foreground, which ``nanmean`` leaves out.

    Raises:
        InputError: different shapes.

    Example:
        >>> import torch
        >>> foreground = torch.tensor([[True, True, True, False]])
        >>> foreground_recall(torch.tensor([[True, False, False, True]]), foreground)
        tensor([0.5000])
    """
    if kept.shape != foreground.shape or kept.ndim != 2:
        raise InputError(
            f"foreground_recall needs two (B, N) masks, not {tuple(kept.shape)} and {tuple(foreground.shape)}."
        )
    kept, foreground = kept.bool(), foreground.bool()
    size = foreground.sum(dim=1)
    possible = kept.sum(dim=1).minimum(size).clamp(min=1)
    recall = (kept & foreground).sum(dim=1).float() / possible
    return recall.masked_fill(size == 0, float("nan"))


def patch_mask(mask: NDArray[np.bool_], grid_size: tuple[int, int], min_fraction: float = 0.1) -> NDArray[np.bool_]:
    """Say which patches show foreground.

    Args:
        mask: ``(H, W)`` bool, the foreground's pixels.
        grid_size: rows and columns of patches.
        min_fraction: least fraction of a patch's pixels, above 0, that makes it foreground.

    Returns:
        ``(N,)`` bool, row by row as the model orders its tokens.

    Raises:
        InputError: the mask does not divide into the grid.
    """
    rows, columns = grid_size
    if mask.ndim != 2 or mask.shape[0] % rows or mask.shape[1] % columns:
        raise InputError(f"a mask of shape {mask.shape} does not divide into {rows} x {columns} patches.")
    if not 0 < min_fraction <= 1:
        raise InputError(f"min_fraction={min_fraction}: a fraction in (0, 1].")
    height, width = mask.shape[0] // rows, mask.shape[1] // columns
    covered = mask.astype(bool).reshape(rows, height, columns, width).mean(axis=(1, 3))
    return np.asarray(covered >= min_fraction).reshape(-1)
