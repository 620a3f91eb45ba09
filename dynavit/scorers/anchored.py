"""A learned scorer that starts as a free one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynavit.errors import InputError
from dynavit.functional import full_precision
from dynavit.scorers.base import Scorer, StageView, create_inner, register_scorer
from dynavit.scorers.light import LightPredictor


@register_scorer
class AnchoredScorer(Scorer):
    """Score by a scorer that learns nothing, times a learned scale, plus what a light predictor adds to it.

    Before training the scale is 1 and the addition 0, so it chooses exactly as its anchor does, which plain top-k of
    a random predictor does not. The scorers on attention give logarithms: there the scale is an exponent, and the
    addition the logarithm of a factor.

    Args:
        dim: token width D.
        anchor: the scorer to start from, a name or ``{"name": ..., option: value}``: ``attention``, with a pooling head
            that attends ``latent_attention``, or another that learns nothing.
        reduction: of the predictor, as in :class:`~dynavit.scorers.LightPredictor`.
        initial_logit: added to all logits at the start, and learned from there. Selectors with a fixed count do not
            notice it; those with an expected one start near the dense model when it makes most logits positive: of N
            tokens, ``log(N) + 2`` with an anchor on attention, whose logits are near ``-log(N)``.

    Raises:
        InputError: ``anchor`` is no scorer, or learns itself; an impossible ``reduction``.
    """

    name = "anchored"
    learned = True

    def __init__(
        self, dim: int, anchor: str | Mapping[str, Any] = "attention", reduction: int = 8, initial_logit: float = 0.0
    ) -> None:
        super().__init__()
        called = f"scorer 'anchored': anchor={anchor!r}"
        self.free = create_inner(called, anchor, dim)
        if self.free.learned:
            raise InputError(f"{called} learns itself; choose 'attention' or alike.")
        self.anchor = anchor if isinstance(anchor, str) else dict(anchor)
        self.reduction, self.initial_logit = reduction, initial_logit
        self.reads_like(self.free)
        self.scale = nn.Parameter(torch.ones(1))
        self.residual = LightPredictor(dim, reduction, initial_logit)
        nn.init.zeros_(self.residual.score.weight)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        free = self.free(tokens, mask, view)
        return full_precision(self.scale) * free + self.residual(tokens, mask, view)

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        parts = (self.free, self.residual)
        return sum(part.macs(n, num_prefix, num_heads, dim, folds) for part in parts)
