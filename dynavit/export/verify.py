"""Whether an exported model answers as the original does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynavit.errors import InputError


@dataclass(frozen=True)
class Verification:
    """What was compared.

    Attributes:
        max_difference: largest absolute difference of any output value.
        scale: standard deviation of the original's outputs, to judge it by.
        images: number of images compared.
        batch_sizes: at which.
    """

    max_difference: float
    scale: float
    images: int
    batch_sizes: tuple[int, ...]


@torch.inference_mode()
def verify(
    original: Callable[[Tensor], Tensor],
    exported: Callable[[Tensor], Tensor],
    images: Tensor,
    batch_sizes: Sequence[int] = (1, 2, 5),
    tolerance: float = 1e-3,
    classifies: bool = True,
) -> Verification:
    """Compare two models on the same images, at several batch sizes.

    Args:
        original: from ``(B, 3, H, W)`` to ``(B, C)``.
        exported: likewise.
        images: ``(M, 3, H, W)``, at least as many as the largest batch size; all are used.
        batch_sizes: an exporter that baked in one of them fails at the others.
        tolerance: largest difference allowed, in units of the outputs' standard deviation.
        classifies: the largest output names a class, and has to stay the largest.

    Raises:
        InputError: outputs differ by more, or the most likely class differs.
    """
    expected = original(images)
    scale = float(expected.std())
    worst = 0.0
    for size in batch_sizes:
        found = torch.cat([exported(batch) for batch in images.split(size) if len(batch) == size])
        compared = expected[: len(found)]
        worst = max(worst, float((found - compared).abs().max()))
        # two classes closer together than the tolerance may change places
        top = compared.topk(min(2, compared.shape[1]), dim=1).values
        clear = (top[:, 0] - top[:, -1]) > 2 * tolerance * scale
        wrong = int(((found.argmax(1) != compared.argmax(1)) & clear).sum()) if classifies else 0
        if worst > tolerance * scale or wrong:
            raise InputError(
                f"the exported model differs from the original at batch size {size}: by up to {worst:.2g} where "
                f"outputs have a standard deviation of {scale:.2g}; {wrong} of {len(found)} images change class. "
                f"Nothing was written. Please report this with the versions of torch, onnx and onnxruntime."
            )
    return Verification(worst, scale, len(images), tuple(batch_sizes))
