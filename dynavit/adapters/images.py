"""What a backbone is given to look at, checked before its modules fail on it in words of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynavit.errors import InputError

if TYPE_CHECKING:
    from dynavit.adapters.base import BackboneAdapter


def check_images(images: Any, adapter: BackboneAdapter, otherwise: str = "") -> None:
    """Refuse what is no batch of images, by its kind alone: values are not looked at.

    Args:
        images: what the model was called with.
        adapter: of the backbone.
        otherwise: what else the backbone takes, for the message.

    Raises:
        InputError: no tensor ``(B, C, H, W)`` of floating-point numbers.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # nothing of this belongs into a graph
        return
    try:
        channels: Any = adapter.in_chans
    except StopIteration:  # a stem of somebody's own, without a convolution
        channels = "C"
    wanted = f"give a tensor (B, {channels}, H, W) of floating-point numbers{otherwise}"
    if not isinstance(images, Tensor):
        raise InputError(f"images of type {type(images).__name__}: {wanted}.")
    if images.ndim != 4 or channels not in ("C", images.shape[1]):
        hint = " One image alone is images.unsqueeze(0)." if images.ndim == 3 else ""
        raise InputError(f"images of shape {tuple(images.shape)}: {wanted}.{hint}")
    if not images.is_floating_point():
        raise InputError(f"images of {images.dtype}: {wanted}. Of bytes they are images.float() / 255, normalised.")
