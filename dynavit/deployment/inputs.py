"""What an exported file is given to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dynavit.errors import InputError

INPUT = "images"
PRESENT = "present"
"""Names of what a file takes: images, and of several spectra which of them each sample has."""


def repeated(images: Tensor, size: int) -> Tensor:
    """Return ``size`` images, ``(size, 3, H, W)``: those given, the first ones again where there are fewer."""
    return images[torch.arange(size) % len(images)]


def all_present(samples: Tensor) -> Tensor:
    """Return ``(B, M)`` bool: every spectrum of samples ``(B, M, 3, H, W)`` is there."""
    return torch.ones(samples.shape[:2], dtype=torch.bool, device=samples.device)


def inputs_of(images: Tensor, present: Tensor | None, takes_present: bool, path: Path) -> tuple[Tensor, ...]:
    """Return what to give a file: images, and if it wants that which spectra there are, all if ``present`` is None.

    Raises:
        InputError: a file of one image a sample is told of spectra, or in another shape than ``(B, M)`` bool.
    """
    if not takes_present:
        if present is not None:
            raise InputError(f"{path} takes one image a sample: leave present out.")
        return (images,)
    present = all_present(images) if present is None else present
    if present.shape != images.shape[:2] or present.dtype != torch.bool:
        raise InputError(
            f"{path} takes present of shape {tuple(images.shape[:2])} in bool, and was given {tuple(present.shape)} in "
            f"{str(present.dtype).removeprefix('torch.')}."
        )
    return images, present


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
