"""Images to time models on, where what they show makes no difference."""

from __future__ import annotations

from torch import Tensor

from dynavit.cost.macs import checked_size
from dynavit.models import PrunedViT


def random_images(model: PrunedViT, batch_size: int, size: tuple[int, int] | None = None) -> Tensor:
    """Return noise ``(batch_size, C, H, W)`` on a model's device and in its precision.

    Args:
        model: whose channels the images have.
        batch_size: their number.
        size: height and width in pixels; the model's own if None.
    """
    parameter = next(model.parameters())
    return parameter.new_empty(batch_size, model.adapter.in_chans, *(size or checked_size(model, None))).normal_()
