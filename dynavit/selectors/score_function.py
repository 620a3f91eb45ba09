"""Sampled decisions that learn from a reward alone: the score-function (REINFORCE) estimators.

The network's loss may then be anything, differentiable or not: the gradient is
``reward * grad log P(decision)``. Williams 1992; with leave-one-out baselines, Kool et al. 2019
(https://openreview.net/forum?id=r1lgTGL5DE).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dynavit.errors import InputError
from dynavit.functional import NEVER
from dynavit.selectors.base import Selector
from dynavit.selectors.functional import gumbel_noise, logistic_noise
from dynavit.selectors.registry import register_selector
from dynavit.selectors.selection import Selection, SelectionRequest

_DISTRIBUTIONS = ("plackett_luce", "bernoulli")


@register_selector("score_function")
class ScoreFunction(Selector):
    """Sampled hard masks without a gradient; learns from a reward through ``log_prob``.

    Train it with :func:`~dynavit.losses.policy_gradient_loss` over several samples an image; the trainer does
    so (``loss.reward``, ``loss.reward_samples``).

    Args:
        distribution: ``"plackett_luce"`` samples k tokens without replacement; ``log_prob`` is that of the
            sampled order, unbiased for the set. ``"bernoulli"`` samples independent gates with P(keep) =
            sigmoid(logit) and needs a keep-ratio loss; all gates of an image may close.
        antithetic: for ``"bernoulli"``: the second half of the batch has to repeat the first and gets its
            noise negated; ``log_prob`` is then the surrogate with which two samples and leave-one-out
            baselines give DisARM (Dong et al. 2020, https://arxiv.org/abs/2006.10680, equation 7), of less
            variance than independent pairs. Exact for a single stage only.

    Raises:
        InputError: another distribution, or antithetic without gates.
    """

    stochastic = True
    trains_predictor = False
    needs_reward = True

    def __init__(
        self, distribution: Literal["plackett_luce", "bernoulli"] = "plackett_luce", antithetic: bool = False
    ) -> None:
        super().__init__()
        if distribution not in _DISTRIBUTIONS:
            raise InputError(
                f"selector 'score_function': distribution={distribution!r}; choose one of {', '.join(_DISTRIBUTIONS)}."
            )
        if antithetic and distribution != "bernoulli":
            raise InputError("selector 'score_function': antithetic=True needs distribution='bernoulli'.")
        self.distribution = distribution
        self.antithetic = antithetic
        self.budget = "k" if distribution == "plackett_luce" else "expected"

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        alive = request.alive
        probability = logits.sigmoid() * alive
        if self.distribution == "plackett_luce":
            noisy = (logits + gumbel_noise(logits, request.generator)).masked_fill(~alive, NEVER)
            keep, log_prob = _ordered_plackett_luce(logits, alive, request.count, noisy)
        elif self.antithetic:
            keep, log_prob = self._antithetic_pairs(logits, alive, request.generator)
        else:
            keep = (logits + logistic_noise(logits, request.generator) > 0) & alive
            log_prob = (torch.where(keep, F.logsigmoid(logits), F.logsigmoid(-logits)) * alive).sum(dim=1)
        return Selection(keep, keep.to(logits.dtype), probability, log_prob)

    def _antithetic_pairs(
        self, logits: Tensor, alive: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        if len(logits) % 2:
            raise InputError(
                f"selector 'score_function' with antithetic=True: {len(logits)} images; the second half of a batch "
                f"has to repeat the first."
            )
        half = logistic_noise(logits[: len(logits) // 2], generator)
        keep = (logits + torch.cat([half, -half]) > 0) & alive
        twin = keep.roll(len(keep) // 2, dims=0)
        # +1 where only this sample keeps the token, -1 where only its twin does, 0 where they agree
        sign = keep.to(logits.dtype) - twin.to(logits.dtype)
        score = (sign * torch.sigmoid(logits.abs())).detach() / 2
        return keep, (score * logits * alive).sum(dim=1)


def _ordered_plackett_luce(logits: Tensor, alive: Tensor, k: int | Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the k largest noisy logits; also return ``(B,)`` the log-probability of drawing them in that order.

    Of each draw: the token's logit minus logsumexp over the tokens not drawn before it.
    """
    order = noisy.argsort(dim=1, descending=True)
    sorted_logits = logits.masked_fill(~alive, NEVER).gather(1, order)
    remaining = sorted_logits.flip(1).logcumsumexp(dim=1).flip(1)
    wanted = k.reshape(-1, 1) if isinstance(k, Tensor) else k
    drawn = (torch.arange(logits.shape[1], device=logits.device) < wanted) & alive.gather(1, order)
    log_prob = torch.where(drawn, sorted_logits - remaining, 0.0).sum(dim=1)
    return torch.zeros_like(alive).scatter(1, order, drawn), log_prob
