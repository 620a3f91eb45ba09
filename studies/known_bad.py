"""Formulas that are known to be wrong, kept to show what each of them does.

Nothing outside the studies may import this file. Every item names what the library does instead.

Shapes: B images, N tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dynavit.selectors import Selection, SelectionRequest, Selector
from dynavit.selectors.functional import gumbel_noise, hard_topk, logistic_noise, straight_through


def additive_mask(mask: Tensor, big: float) -> Tensor:
    """Known bad: ``-(1 - m) * big`` with a mask that carries a gradient.

    0 on kept tokens, so nothing looks wrong, but the gradient of the mask is multiplied by ``big``
    on its way back. Instead: :func:`~dynavit.functional.log_mask`.
    """
    return -(1 - mask) * big


def one_winner_mask(
    scores: Tensor,
    k: int,
    temperature: float = 1.0,
    noise: bool = True,
    noise_limit: float | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Known bad: hard top-k of the scores, with the gradient of a softmax over all tokens.

    The softmax says which *one* token wins, so its entries sum to 1 and not to k; and the noise
    touches the backward pass alone, so nothing is explored. Harmless beside :func:`additive_mask`,
    and therefore useful to show what the explosion is made of. Instead: the selectors ``topk`` and
    ``gumbel_topk``.

    Args:
        scores: ``(B, N)``.
        k: tokens to keep.
        temperature: of the softmax.
        noise: add Gumbel noise to the softmax.
        noise_limit: clip that noise to +- this.
        generator: source of the noise.

    Returns:
        ``keep`` ``(B, N)`` bool and ``mask`` ``(B, N)``, equal in value.
    """
    keep = hard_topk(scores, torch.ones_like(scores, dtype=torch.bool), k)
    drawn = gumbel_noise(scores, generator)
    if noise_limit is not None:
        drawn = drawn.clamp(-noise_limit, noise_limit)
    soft = torch.softmax((scores + drawn * noise) / temperature, dim=1)
    return keep, straight_through(keep.to(soft.dtype), soft)


def unclamped_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Known bad: mean of ``(B, N, D)`` over the mask with ``sum(m) + 1e-3`` below the line.

    Where a gate happens to keep nothing, gradients of the mask are 1000 times too large. Instead:
    :func:`~dynavit.functional.masked_mean`.
    """
    weight = mask.unsqueeze(-1)
    return (tokens * weight).sum(dim=1) / (weight.sum(dim=1) + 1e-3)


class UnguardedGate(Selector):
    """Known bad with :func:`unclamped_mean`: hard logistic gates that may keep no token at all.

    The mask and gradient of the selector ``ste``, which instead keeps its best token then.
    """

    fixed_k = False
    stochastic = True
    noise = staticmethod(logistic_noise)

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        alive = request.alive
        noisy = logits + self.noise(logits, request.generator)
        keep = (noisy > 0) & alive
        soft = torch.sigmoid(noisy / request.temperature) * alive
        return Selection(keep, straight_through(keep.to(soft.dtype), soft), logits.sigmoid() * alive)


class SingleGumbel(UnguardedGate):
    """Known bad: a gate with one Gumbel in place of the difference of two.

    It keeps with probability ``1 - exp(-exp(l))``, .632 at l = 0, while its budget loss reads
    ``sigmoid(l)``. Instead: the selectors ``ste`` and ``gumbel_sigmoid``.
    """

    noise = staticmethod(gumbel_noise)


class SoftmaxLogGate(UnguardedGate):
    """Known bad: a softmax over the tokens, its log as the logit of a binary gate.

    ``P(keep) = p / (1 + p)`` with ``sum(p) = 1``: less than one token is kept in expectation,
    whatever the budget asks for. Instead: one raw logit a token.
    """

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        # a row with nothing alive keeps finite numbers; its mask is zero anyway
        log_probability = functional.log_softmax(logits.masked_fill(~request.alive, -1e4), dim=1)
        return super().sample(log_probability, request)


class DiagonalPerturbedTopK(Selector):
    """Known bad: perturbed top-k whose backward takes the diagonal of its Jacobian.

    Cordonnier et al. 2021 (https://arxiv.org/abs/2104.03059) as their code and its many copies have
    it; the gradient of a k-subset must sum to 0 over the tokens, this one does not. A learning curve
    hardly shows it. Instead: the selector ``perturbed_topk``.
    """

    stochastic = True

    def __init__(self, sigma: float = 0.5, samples: int = 16) -> None:
        super().__init__()
        self.sigma, self.samples = sigma, samples

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        alive, k = request.alive, request.count
        assert isinstance(k, int)
        shape = (self.samples, *logits.shape)
        noise = torch.randn(shape, generator=request.generator, device=logits.device, dtype=logits.dtype)
        mask = _DiagonalPerturbed.apply(logits, alive, k, noise, self.sigma)
        return Selection(hard_topk(logits, alive, k), mask, mask)


class _DiagonalPerturbed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, alive: Tensor, k: int, noise: Tensor, sigma: float) -> Tensor:
        noisy = (logits + sigma * noise).flatten(0, 1)
        masks = hard_topk(noisy, alive.repeat(len(noise), 1), k).reshape(noise.shape).to(logits.dtype)
        ctx.save_for_backward((masks * noise).mean(dim=0) / sigma)
        return masks.mean(dim=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (diagonal,) = ctx.saved_tensors
        return grad * diagonal, None, None, None, None
