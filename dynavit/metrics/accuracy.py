"""Classification accuracy.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest
from torch import Tensor

from dynavit.errors import InputError


def topk_accuracy(best: Tensor, targets: Tensor, topk: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Return ``{"top1": percent, "top5": percent}`` of predictions that were already ranked.

    Args:
        best: ``(B, K)`` int64 class indices, the most probable first.
        targets: ``(B,)`` int64 class indices.
        topk: which k; those above K are left out.

    Raises:
        InputError: no image, or shapes that do not belong together.

    Example:
        >>> import torch
        >>> topk_accuracy(torch.tensor([[3, 1], [0, 2]]), torch.tensor([1, 0]), topk=(1, 2, 5))
        {'top1': 50.0, 'top2': 100.0}
    """
    if best.ndim != 2 or targets.shape != best.shape[:1] or not len(best):
        raise InputError(
            f"topk_accuracy needs predictions (B, K) and targets (B,) of one image or more, not "
            f"{tuple(best.shape)} and {tuple(targets.shape)}."
        )
    hits = best == targets[:, None]
    return {f"top{k}": 100 * int(hits[:, :k].sum()) / len(best) for k in topk if k <= best.shape[1]}


def accuracy_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Return, in percent, between what an accuracy lies: Wilson's score interval (Wilson 1927).

    Raises:
        InputError: no image, or more hits than images.

    Example:
        >>> [round(end, 1) for end in accuracy_interval(36, 36)]
        [90.4, 100.0]
    """
    if not 0 <= hits <= count or count < 1:
        raise InputError(f"an accuracy of {hits} hits among {count} images makes no sense.")
    low, high = binomtest(hits, count).proportion_ci(level, method="wilson")
    return 100 * float(low), 100 * float(high)
