"""Independent binary gates with logistic noise: the binary concrete (Gumbel-sigmoid) family.

``P(keep) = sigmoid(logit)`` whatever the temperature. The noise is logistic, the difference of two
Gumbels; a single Gumbel would keep with probability ``1 - exp(-exp(logit))`` instead.

Maddison et al. 2017 (https://arxiv.org/abs/1611.00712, appendix B); Jang et al. 2017
(https://arxiv.org/abs/1611.01144).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynavit.selectors.base import Selection, Selector
from dynavit.selectors.functional import hard_topk, logistic_noise, straight_through
from dynavit.selectors.registry import register_selector


@register_selector("gumbel_sigmoid")
class GumbelSigmoid(Selector):
    """Soft binary gates: mask = sigmoid((logit + logistic noise) / temperature).

    The network sees fractional tokens while training, so nothing is removed until eval. Needs a
    keep-ratio loss. Lower temperatures come closer to eval, at a gradient variance that grows as
    1 / temperature.
    """

    budget = "expected"
    soft = True
    stochastic = True

    def sample(
        self,
        logits: Tensor,
        alive: Tensor,
        k: int | Tensor | None,
        temperature: float | Tensor,
        generator: torch.Generator | None,
    ) -> Selection:
        noisy = logits + logistic_noise(logits, generator)
        mask = torch.sigmoid(noisy / temperature) * alive
        return Selection((noisy > 0) & alive, mask, logits.sigmoid() * alive)


@register_selector("ste")
class StraightThrough(Selector):
    """Hard binary gates, straight-through: forward 0 or 1, backward the gradient of the soft gate.

    Each token is kept with probability sigmoid(logit), so the number kept varies by image while
    training; where none would be left, the best one stays, as in eval. Needs a keep-ratio loss. The
    temperature smooths the gradient only; below about 0.3 it adds variance and removes no bias.
    """

    budget = "expected"
    stochastic = True

    def sample(
        self,
        logits: Tensor,
        alive: Tensor,
        k: int | Tensor | None,
        temperature: float | Tensor,
        generator: torch.Generator | None,
    ) -> Selection:
        noisy = logits + logistic_noise(logits, generator)  # the same noise in both directions
        keep = (noisy > 0) & alive
        # With no key left the attention of a model without prefix tokens would be all leakage, and
        # its gradient 1 / eps; a mean over no token would be 0, and the norm after it 1 / sqrt(eps).
        keep = keep | (hard_topk(noisy, alive, 1) & ~keep.any(dim=1, keepdim=True))
        soft = torch.sigmoid(noisy / temperature) * alive
        return Selection(keep, straight_through(keep.to(soft.dtype), soft), logits.sigmoid() * alive)
