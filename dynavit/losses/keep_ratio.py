"""The loss that makes selectors with an expected count keep as many tokens as asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def keep_ratio_loss(
    expected: Sequence[Tensor], keep_ratios: Sequence[float | Tensor], per_image: bool = True
) -> Tensor:
    """Return the mean over stages of ``(expected kept fraction - ratio)^2``.

    DynamicViT, Rao et al. 2021, https://arxiv.org/abs/2106.02034, eq. 12, on the expected fraction
    in place of the sampled decisions, whose variance would push every probability to 0 or 1.
    Selectors that keep exactly k tokens need no such loss: for them its gradient is zero.

    Args:
        expected: one ``(B,)`` tensor a stage, ``expected`` of ``trace.choices``: fraction of the original patches.
        keep_ratios: the fraction of the original patches wanted after each stage.
        per_image: every image has to meet the ratio. If False only the mean of the batch has to, so
            that images may differ (DynamicViT's ``dynamic``).

    Returns:
        A scalar.

    Raises:
        ValueError: no stage, or another number of ratios than of stages.

    Example:
        >>> keep_ratio_loss([torch.tensor([0.5, 0.9])], [0.7])
        tensor(0.0400)
        >>> keep_ratio_loss([torch.tensor([0.5, 0.9])], [0.7], per_image=False)
        tensor(0.)
    """
    if not expected or len(expected) != len(keep_ratios):
        raise ValueError(
            f"keep_ratio_loss: {len(expected)} stages and {len(keep_ratios)} keep ratios; it needs one "
            f"ratio a stage and at least one stage."
        )
    terms = []
    for fraction, ratio in zip(expected, keep_ratios, strict=True):
        fraction = fraction if per_image else fraction.mean()
        terms.append((fraction - ratio).square().mean())
    return torch.stack(terms).mean()
