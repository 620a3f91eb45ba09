"""The mathematics of choosing k of N tokens: noise, straight-through, hard and soft top-k.

Shapes: B batch, N patch tokens. Everything is computed in fp32 (or fp64, when given) with autocast
off, because a gate's sigmoid saturates in half precision at ordinary logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynavit.functional import NEVER, uniform

_BISECTIONS = {torch.float32: 30, torch.float64: 64}  # which exhaust their digits


def logistic_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw standard logistic noise shaped like ``like``: fp32, always finite (|x| < 16.7)."""
    u = _open_uniform(like, generator)
    return u.log() - torch.log1p(-u)


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw standard Gumbel noise shaped like ``like``: fp32, always finite."""
    return -(-_open_uniform(like, generator).log()).log()


def _open_uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform on the open interval (0, 1), without the 0 that may be drawn."""
    u = uniform(like, generator)
    edge = 2.0**-24
    return u * (1 - 2 * edge) + edge


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the value of ``hard`` with the gradient of ``soft``.

    Bengio et al. 2013, https://arxiv.org/abs/1308.3432. This spelling is exact for unbounded
    ``soft`` too; ``hard - soft.detach() + soft`` is not.
    """
    return hard + (soft - soft.detach())


def hard_topk(logits: Tensor, alive: Tensor, k: int | Tensor) -> Tensor:
    """Mark the ``k`` largest alive logits of each row; ties go to the lowest index.

    Args:
        logits: ``(B, N)``.
        alive: ``(B, N)`` bool; only these can be kept, however large ``k`` is.
        k: one count for all rows, or ``(B,)`` int64, or a 0-dim int64 tensor.

    Returns:
        ``(B, N)`` bool with ``min(k, alive)`` True in each row.
    """
    # ONNX has no stable sort; torch's is stable on CPU all the same
    order = logits.masked_fill(~alive, NEVER).argsort(dim=1, descending=True)
    if isinstance(k, Tensor):
        chosen = torch.arange(logits.shape[1], device=logits.device) < k.reshape(-1, 1)
        chosen = chosen.expand(logits.shape)
        return torch.zeros_like(alive).scatter(1, order, chosen) & alive
    chosen = torch.ones_like(order[:, :k], dtype=torch.bool)  # torch.jit.trace cannot scatter a Python bool
    return torch.zeros_like(alive).scatter(1, order[:, :k], chosen) & alive


def above(logits: Tensor, alive: Tensor, threshold: float) -> Tensor:
    """Mark the alive logits ``(B, N)`` above a threshold, however many; where there is none, the largest."""
    return (alive & (logits > threshold)) | hard_topk(logits, alive, 1)


def soft_topk(logits: Tensor, alive: Tensor, k: int | Tensor, temperature: float | Tensor) -> Tensor:
    """Relax "the k largest": ``m_i = sigmoid((l_i + c) / temperature)`` with ``sum(m) = k``.

    This is entropic optimal transport to the two anchors keep and drop (SOFT top-k, Xie et al.
    2020, https://arxiv.org/abs/2002.06504, with regularisation ``2 * temperature``), solved by
    bisection on ``c`` instead of Sinkhorn iterations. The gradient is the closed form
    ``(v g - v (v.g) / sum(v)) / temperature`` with ``v = m (1 - m)``.

    Args:
        logits: ``(B, N)``.
        alive: ``(B, N)`` bool; dead tokens get 0, and k is capped at the number alive.
        k: as in :func:`hard_topk`.
        temperature: above 0; small values approach the hard choice.

    Returns:
        ``(B, N)`` in [0, 1]; a row with no token alive is all zero.
    """
    return _SoftTopK.apply(logits, alive, k, temperature)


class _SoftTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, alive: Tensor, k: int | Tensor, temperature: float | Tensor) -> Tensor:
        num_alive = alive.sum(dim=1, keepdim=True)
        count = k.reshape(-1, 1) if isinstance(k, Tensor) else torch.full_like(num_alive, k)
        count = torch.minimum(count, num_alive)
        # Saturate instead of searching where nothing or everything is kept.
        clean = logits.masked_fill(~alive, 0.0)
        low = -logits.masked_fill(~alive, NEVER).amax(dim=1, keepdim=True) - 40 * temperature
        high = -logits.masked_fill(~alive, -NEVER).amin(dim=1, keepdim=True) + 40 * temperature
        for _ in range(_BISECTIONS[logits.dtype]):
            shift = (low + high) / 2
            mass = torch.sigmoid((clean + shift) / temperature).masked_fill(~alive, 0.0).sum(1, True)
            low = torch.where(mass < count, shift, low)
            high = torch.where(mass < count, high, shift)
        mask = torch.sigmoid((clean + (low + high) / 2) / temperature).masked_fill(~alive, 0.0)
        mask = torch.where(count >= num_alive, alive.to(mask.dtype), mask)
        ctx.save_for_backward(mask)
        ctx.temperature = temperature
        return mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (mask,) = ctx.saved_tensors
        v = mask * (1 - mask)
        total = v.sum(dim=1, keepdim=True)
        mean = (v * grad).sum(dim=1, keepdim=True) / torch.where(total > 0, total, 1.0)
        return v * (grad - mean) / ctx.temperature, None, None, None


def random_rank(positions: Tensor, seed: int, stage: int) -> Tensor:
    """Rank patches ``(B, n)`` in an order that depends on the seed, the stage and the original position alone.

    A hash of each position, so that its rank does not depend on who else is alive: whole numbers from 0 to
    2**24 - 1 in fp32, which are exact. Made tokens, at position -1, rank alike.
    """
    key = positions.to(torch.int64) + 1
    for salt in (seed + 1, stage + 1):
        key = (key * 0x9E3779B1 + (salt * 0x85EBCA6B & 0xFFFFFFFF)) & 0xFFFFFFFF
        key = ((key ^ (key >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
        key = key ^ (key >> 13)
    return (key >> 8).float()
