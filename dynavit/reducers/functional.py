"""The mathematics that reducers share: cosines, weights of the tokens that count, weighted means.

Shapes: B batch, D width. Weights are computed in fp32 (or fp64, when given) with autocast off and cast to
the tokens' dtype where they meet them. Sums over tokens are matrix products rather than ``index_add``: on a
GPU the latter adds in no fixed order, so that the same image would not give the same output twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynavit.functional import NEVER, full_precision


def hide(logits: Tensor, counts: Tensor | None) -> Tensor:
    """Make logits so low where tokens do not count that their ``exp`` is exactly 0, and its gradient too.

    Args:
        logits: ``(B, m)`` or ``(B, r, m)``.
        counts: ``(B, m)`` bool; None: all count.
    """
    if counts is None:
        return logits
    hidden = ~counts
    return logits.masked_fill(hidden if logits.ndim == 2 else hidden.unsqueeze(1), NEVER)


def weighted_sum(weights: Tensor, tokens: Tensor) -> Tensor:
    """Return ``weights @ tokens``, ``(B, m, D)``, for weights ``(B, m, q)`` and tokens ``(B, q, D)``."""
    with torch.autocast(tokens.device.type, enabled=False):
        return torch.bmm(weights.to(tokens.dtype), tokens)


def nearest(
    tokens: Tensor, others: Tensor, counts: Tensor | None = None, but_itself: bool = False
) -> tuple[Tensor, Tensor]:
    """Find for each token the most similar of the others that count; ties go to the lowest index.

    Args:
        tokens: ``(B, q, D)``.
        others: ``(B, k, D)``.
        counts: ``(B, k)`` bool; None: all count.
        but_itself: the others are the tokens themselves, and each looks among the rest, or finds itself if none counts.

    Returns:
        The cosine ``(B, q)`` with its gradient, and the index ``(B, q)`` int64.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        tokens, others = full_precision(tokens), full_precision(others)
        # norms divide the (q, k) products, not the tokens: nothing as wide as D is copied
        cosine = torch.bmm(tokens, others.transpose(1, 2)) / _norm(others).unsqueeze(1)
        if but_itself:
            itself = torch.eye(cosine.shape[2], dtype=torch.bool, device=cosine.device)
            cosine = cosine.masked_fill(itself, NEVER / 2)  # found only where no other counts
        value, index = hide(cosine, counts).max(dim=2)
        return value / _norm(tokens), index


def _norm(tokens: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tokens, dim=-1).clamp(min=1e-6)


def absorb(
    receivers: Tensor,
    own: Tensor | float,
    tokens: Tensor,
    weight: Tensor,
    target: Tensor,
    factor: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Let each receiver become the weighted mean of itself and the tokens sent to it.

    Args:
        receivers: ``(B, k, D)``.
        own: their own weights, ``(B, k)`` or one number, above 0.
        tokens: ``(B, q, D)``.
        weight: ``(B, q)``, 0 for tokens that do not count.
        target: ``(B, q)`` int64, the receiver of each token.
        factor: ``(B, q)``, by which tokens count more or less in the mean than their weight says; None: 1.

    Returns:
        The means ``(B, k, D)``, where a receiver to which nothing is sent stays exactly as it is, and the
        weight ``(B, k)`` sent to each, without the factor.
    """
    sent = weight.new_zeros(weight.shape[0], receivers.shape[1], weight.shape[1])
    sent = sent.scatter(1, target.unsqueeze(1), weight.unsqueeze(1))
    received = drawn = sent.sum(dim=2)
    if factor is not None:
        sent = sent * factor.unsqueeze(1)
        drawn = sent.sum(dim=2)
    total = drawn + own
    rest = (own / total).unsqueeze(2)  # exactly 1 where nothing is received
    share = sent / total.unsqueeze(2)
    with torch.autocast(receivers.device.type, enabled=False):
        dtype = receivers.dtype
        mean = torch.baddbmm(receivers * rest.to(dtype), share.to(dtype), tokens)
    return mean, received
