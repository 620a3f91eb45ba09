"""Deterministic top-k with a straight-through gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from dynavit.selectors.base import Selection, Selector
from dynavit.selectors.functional import hard_topk, soft_topk, straight_through
from dynavit.selectors.registry import register_selector


@register_selector("topk")
class TopK(Selector):
    """The k largest logits, with the gradient of soft top-k. Deterministic; the default.

    Forward in training and in eval is the same hard choice. Backward is the closed form of
    :func:`~dynavit.selectors.functional.soft_topk`, which knows k: raising one token's logit lowers
    the others' masks, kept and dropped alike.
    """

    def sample(
        self,
        logits: Tensor,
        alive: Tensor,
        k: int | Tensor | None,
        temperature: float | Tensor,
        generator: torch.Generator | None,
    ) -> Selection:
        assert k is not None
        keep = hard_topk(logits, alive, k)
        soft = soft_topk(logits, alive, k, temperature)
        return Selection(keep, straight_through(keep.to(soft.dtype), soft), soft)
