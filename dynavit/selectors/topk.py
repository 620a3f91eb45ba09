"""Selectors that keep exactly k tokens: top-k of the logits, plain, noisy or relaxed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.selectors.base import Selector
from dynavit.selectors.functional import gumbel_noise, hard_topk, soft_topk, straight_through
from dynavit.selectors.registry import register_selector
from dynavit.selectors.selection import Selection, SelectionRequest

_GRADIENTS = ("soft_topk", "gate", "none")


@register_selector("topk")
class TopK(Selector):
    """The k largest logits, with the gradient of soft top-k. Deterministic; the default.

    Forward in training and in eval is the same hard choice. Three gradients are on offer:

    - ``"soft_topk"``: the closed form of :func:`~dynavit.selectors.functional.soft_topk`, which
      knows k: raising one token's logit lowers the others' masks, kept and dropped alike.
    - ``"gate"``: that of ``sigmoid(logit / temperature)``, to kept tokens alone, as routers of mixtures of
      experts learn (Shazeer et al. 2017, https://arxiv.org/abs/1701.06538).
    - ``"none"``: no gradient; the predictors stay as they are. A baseline.

    Raises:
        InputError: another gradient.
    """

    def __init__(self, gradient: Literal["soft_topk", "gate", "none"] = "soft_topk") -> None:
        super().__init__()
        if gradient not in _GRADIENTS:
            raise InputError(f"selector 'topk': gradient={gradient!r}; choose one of {', '.join(_GRADIENTS)}.")
        self.gradient = gradient
        self.trains_predictor = gradient != "none"

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        if self.gradient == "none":
            return self.decide(logits.detach(), request.alive, request.count)
        if self.gradient == "gate":
            keep = hard_topk(logits, request.alive, request.count)
            gate = torch.sigmoid(logits / request.temperature) * request.alive
            return Selection(keep, straight_through(keep.to(gate.dtype), gate * keep), gate)
        return _hard_forward_soft_backward(logits, request)


@register_selector("gumbel_topk")
class GumbelTopK(Selector):
    """The k largest of logits with Gumbel noise, with the gradient of soft top-k on the same noise.

    Samples k tokens without replacement, exactly by the Plackett-Luce distribution of the logits
    (Kool et al. 2019, https://arxiv.org/abs/1903.06059, section 3), which explores tokens that the
    logits alone would never keep.
    """

    stochastic = True

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        noisy = logits + gumbel_noise(logits, request.generator)  # the same noise in both directions
        return _hard_forward_soft_backward(noisy, request)


@register_selector("soft_topk")
class SoftTopK(Selector):
    """Fractional masks that sum to k; anneal the temperature, so that they harden before eval.

    The network sees every token in part while training, so nothing is removed until eval. Lower the
    temperature to about 0.1 over the run (``schedule.temperature_end``): at 1 the masks are far from
    the hard choice of eval.
    """

    soft = True

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        mask = soft_topk(logits, request.alive, request.count, request.temperature)
        return Selection(hard_topk(logits, request.alive, request.count), mask, mask)


def _hard_forward_soft_backward(scores: Tensor, request: SelectionRequest) -> Selection:
    keep = hard_topk(scores, request.alive, request.count)
    soft = soft_topk(scores, request.alive, request.count, request.temperature)
    return Selection(keep, straight_through(keep.to(soft.dtype), soft), soft)
