"""How far a shortened model answers as the dense one does: no labels, no training.

Shapes: M images, D features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dynavit.models import PrunedViT


@dataclass(frozen=True)
class Answers:
    """What a model says of images.

    Attributes:
        features: ``(M, D)`` fp32, what the classifier reads.
        logits: ``(M, C)`` fp32; None of a model without classes.
    """

    features: Tensor
    logits: Tensor | None

    @classmethod
    def joined(cls, parts: list[Answers]) -> Answers:
        """Return the answers to several batches as one."""
        logits = [part.logits for part in parts if part.logits is not None]
        return cls(torch.cat([part.features for part in parts]), torch.cat(logits) if logits else None)


@torch.inference_mode()
def answers(model: PrunedViT, images: Tensor) -> Answers:
    """Return what a model in eval mode says of images ``(M, 3, H, W)``."""
    tokens, trace = model.forward_features(images, return_trace=True, **model.unknown_cameras(len(images)))
    pooled = model.forward_head(tokens, pre_logits=True, weight=trace.weight)
    if model.neck is not None or not model.num_classes:
        return Answers(pooled.float().cpu(), None)
    return Answers(pooled.float().cpu(), model.forward_head(tokens, weight=trace.weight).float().cpu())


def agreement(dense: Answers, other: Answers) -> dict[str, float]:
    """Compare answers to the same images.

    Returns:
        ``cosine``, the mean cosine of the features; and where there are classes ``same_top1``, the percentage of images
        given the same one, and ``kl``, the mean divergence ``KL(dense || other)`` in nats.
    """
    found = {"cosine": F.cosine_similarity(dense.features, other.features, dim=1).mean().item()}
    if dense.logits is None or other.logits is None:
        return found
    same = dense.logits.argmax(dim=1) == other.logits.argmax(dim=1)
    teacher, student = dense.logits.log_softmax(dim=1), other.logits.log_softmax(dim=1)
    kl = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return {"same_top1": 100 * same.double().mean().item(), "kl": kl.item(), **found}
