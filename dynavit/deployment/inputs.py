"""What an exported file is given to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dynavit.errors import InputError


def repeated(images: Tensor, size: int) -> Tensor:
    """Return ``size`` images, ``(size, 3, H, W)``: those given, the first ones again where there are fewer."""
    return images[torch.arange(size) % len(images)]


def require_images(images: Tensor, sizes: Sequence[object], path: Path) -> None:
    """Refuse images that a file does not take; each runtime has other words for it, some of them cryptic.

    Args:
        images: what it was given.
        sizes: of its input, ``(B, 3, H, W)``; what is no whole number may have any.
        path: the file.

    Raises:
        InputError: another shape, or no fp32.
    """
    fixed = [size if isinstance(size, int) else None for size in sizes]
    fits = images.ndim == len(fixed) and all(
        wanted in (None, given) for wanted, given in zip(fixed, images.shape, strict=True)
    )
    if not fits or images.dtype != torch.float32:
        wanted = ", ".join("any" if size is None else str(size) for size in fixed)
        raise InputError(
            f"{path} takes images of shape ({wanted}) in float32, and was given {tuple(images.shape)} in "
            f"{str(images.dtype).removeprefix('torch.')}: prepare them as the run does, or export for their size."
        )


def require_file(path: Path, *beside: str) -> None:
    """Refuse a file that is not there, or that lacks those that go with it.

    Raises:
        InputError: naming it.
    """
    for file in (path, *(path.with_suffix(suffix) for suffix in beside)):
        if not file.is_file():
            raise InputError(f"{file} does not exist, or is no file: give what `dynavit export` wrote.")
