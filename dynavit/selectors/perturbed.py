"""Perturbed top-k: the average of hard choices under Gaussian noise.

Berthet et al. 2020 (https://arxiv.org/abs/2002.08676, proposition 3.1); for patches, Cordonnier et al.
2021 (https://arxiv.org/abs/2104.03059).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.selectors.base import Selector
from dynavit.selectors.functional import hard_topk
from dynavit.selectors.registry import register_selector
from dynavit.selectors.selection import Selection, SelectionRequest


@register_selector("perturbed_topk")
class PerturbedTopK(Selector):
    """Fractional masks: the mean of ``samples`` hard top-k choices under Gaussian noise.

    The gradient is that of the smoothed top-k, unbiased, with a variance that grows as 1 / noise^2.
    The network sees fractional tokens while training, so nothing is removed until eval.

    Args:
        sigma: noise standard deviation at temperature 1; the temperature multiplies it.
        samples: choices to average, at ``samples`` times the cost of sorting.

    Raises:
        InputError: sigma or samples not above 0.
    """

    soft = True
    stochastic = True

    def __init__(self, sigma: float = 0.5, samples: int = 16) -> None:
        super().__init__()
        for name, value in (("sigma", sigma), ("samples", samples)):
            if value <= 0:
                raise InputError(f"selector 'perturbed_topk': {name}={value} must be above 0.")
        self.sigma = sigma
        self.samples = samples

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        shape = (self.samples, *logits.shape)
        noise = torch.randn(shape, generator=request.generator, device=logits.device, dtype=torch.float32)
        alive, k, sigma = request.alive, request.count, self.sigma * request.temperature
        mask = _PerturbedTopK.apply(logits, alive, k, sigma, noise.to(logits.dtype))
        return Selection(hard_topk(logits, alive, k), mask, mask)


class _PerturbedTopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, alive: Tensor, k: int | Tensor, sigma: float | Tensor, noise: Tensor
    ) -> Tensor:
        samples = len(noise)
        noise = noise * alive
        counts = k.reshape(-1).repeat(samples) if isinstance(k, Tensor) and k.numel() > 1 else k
        chosen = hard_topk((logits + sigma * noise).flatten(0, 1), alive.repeat(samples, 1), counts)
        choices = chosen.reshape(noise.shape).to(logits.dtype)
        # subtracting the choice without noise changes no expectation, since E[noise] = 0, and removes most variance
        ctx.save_for_backward(choices - hard_topk(logits, alive, k).to(logits.dtype), noise)
        ctx.sigma = sigma
        return choices.mean(dim=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Multiply by the whole Jacobian ``E[choice_i noise_j] / sigma``; its diagonal is not enough."""
        deviations, noise = ctx.saved_tensors
        weights = torch.einsum("bi,sbi->sb", grad, deviations)
        return torch.einsum("sb,sbj->bj", weights, noise) / (len(noise) * ctx.sigma), None, None, None, None
