"""Independent binary gates: the binary concrete (Gumbel-sigmoid) family, and a plain threshold.

``P(keep) = sigmoid(logit)`` whatever the temperature. The noise is logistic, the difference of two
Gumbels; a single Gumbel would keep with probability ``1 - exp(-exp(logit))`` instead.

Maddison et al. 2017 (https://arxiv.org/abs/1611.00712, appendix B); Jang et al. 2017
(https://arxiv.org/abs/1611.01144).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.selectors.base import Selector
from dynavit.selectors.functional import hard_topk, logistic_noise, straight_through
from dynavit.selectors.registry import register_selector
from dynavit.selectors.selection import Selection, SelectionRequest

_BACKWARDS = ("concrete", "bernoulli", "reinmax")


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

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        alive = request.alive
        noisy = logits + logistic_noise(logits, request.generator)
        mask = torch.sigmoid(noisy / request.temperature) * alive
        return Selection((noisy > 0) & alive, mask, logits.sigmoid() * alive)


@register_selector("ste")
class StraightThrough(Selector):
    """Hard binary gates, straight-through: forward 0 or 1, backward the gradient of a soft gate.

    Each token is kept with probability sigmoid(logit), so the number kept varies by image while
    training; where none would be left, the best one stays, as in eval. Needs a keep-ratio loss. With
    ``p = sigmoid(logit)`` and the decision ``h``, the gradient of the mask is that of

    - ``"concrete"``: the soft gate on the same noise. The temperature smooths this gradient only; below about
      0.3 it adds variance and removes no bias.
    - ``"bernoulli"``: ``p`` itself, ``p (1 - p)`` (Bengio et al. 2013, https://arxiv.org/abs/1308.3432). Exactly
      unbiased where the loss is linear in every single gate; knows no temperature.
    - ``"reinmax"``: ``|h - p| / 2``, second-order accurate: exactly unbiased where the loss is quadratic (Liu et
      al. 2023, https://arxiv.org/abs/2304.08612, algorithm 2, of which this is the binary case).

    Raises:
        InputError: another backward.
    """

    budget = "expected"
    stochastic = True

    def __init__(self, backward: Literal["concrete", "bernoulli", "reinmax"] = "concrete") -> None:
        super().__init__()
        if backward not in _BACKWARDS:
            raise InputError(f"selector 'ste': backward={backward!r}; choose one of {', '.join(_BACKWARDS)}.")
        self.backward = backward

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        alive = request.alive
        noisy = logits + logistic_noise(logits, request.generator)  # the same noise in both directions
        keep = _at_least_one((noisy > 0) & alive, noisy, alive)
        hard, probability = keep.to(logits.dtype), logits.sigmoid() * alive
        if self.backward == "concrete":
            soft = torch.sigmoid(noisy / request.temperature) * alive
        elif self.backward == "bernoulli":
            soft = probability
        else:
            soft = (hard - probability).abs().detach() / 2 * logits * alive
        return Selection(keep, straight_through(hard, soft), probability)


@register_selector("threshold_ste")
class ThresholdStraightThrough(Selector):
    """Keeps every token whose logit is positive; backward the gradient of sigmoid(logit / temperature).

    Deterministic gates, as in learned thresholds (Bonnaerens and Dambre 2023,
    https://arxiv.org/abs/2307.10780, equation 6). Needs a keep-ratio loss; explores nothing. Where no
    logit is positive, the best token stays.
    """

    budget = "expected"

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        alive = request.alive
        keep = _at_least_one((logits > 0) & alive, logits, alive)
        soft = torch.sigmoid(logits / request.temperature) * alive
        return Selection(keep, straight_through(keep.to(soft.dtype), soft), logits.sigmoid() * alive)


def _at_least_one(keep: Tensor, scores: Tensor, alive: Tensor) -> Tensor:
    """Keep the best alive token of rows that keep none.

    With no key left the attention of a model without prefix tokens would be all leakage, and its
    gradient 1 / eps; a mean over no token would be 0, and the norm after it 1 / sqrt(eps).
    """
    return keep | (hard_topk(scores, alive, 1) & ~keep.any(dim=1, keepdim=True))
