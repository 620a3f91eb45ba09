"""Classification accuracy.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

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


class Accuracy:
    """Top-k accuracy over any number of batches, from exact counts.

    Args:
        topk: which k; those above the number of classes are left out of the result.

    Attributes:
        correct: images whose label is among the k largest logits, by k.
        total: images seen.

    Example:
        >>> import torch
        >>> accuracy = Accuracy()
        >>> accuracy.update(torch.eye(6), torch.tensor([0, 1, 2, 3, 4, 4]))
        >>> accuracy.compute()["top1"]
        83.33...
    """

    def __init__(self, topk: Sequence[int] = (1, 5)) -> None:
        if not topk or min(topk) < 1:
            raise InputError(f"topk={list(topk)}: give one or more numbers of at least 1.")
        self.topk = tuple(sorted(set(topk)))
        self.correct: dict[int, int | Tensor] = {}
        self.total = 0

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch.

        Args:
            logits: ``(B, C)``.
            targets: ``(B,)`` int64 class indices.

        Raises:
            InputError: shapes that do not belong together.
        """
        if logits.ndim != 2 or targets.shape != logits.shape[:1]:
            raise InputError(
                f"Accuracy needs logits (B, C) and targets (B,), not {tuple(logits.shape)} and "
                f"{tuple(targets.shape)}."
            )
        topk = [k for k in self.topk if k <= logits.shape[1]]
        if self.total and topk != list(self.correct):
            raise InputError(f"Accuracy: a batch with {logits.shape[1]} classes after one with others.")
        hits = logits.topk(max(topk, default=0), dim=1).indices == targets[:, None]
        for k in topk:  # sums stay on the device: no waiting for it in every batch
            self.correct[k] = self.correct.get(k, 0) + hits[:, :k].sum()
        self.total += len(targets)

    def compute(self) -> dict[str, float]:
        """Return ``{"top1": percent, "top5": percent}``.

        Raises:
            InputError: no image was counted.
        """
        if not self.total:
            raise InputError("Accuracy: nothing was counted; the data set is empty.")
        return {f"top{k}": 100 * int(correct) / self.total for k, correct in self.correct.items()}
