"""Learning from rewards that have no gradient, through the probability of what was drawn.

Shapes: K decisions drawn for each image, B batch.
"""

from __future__ import annotations

from torch import Tensor

from dynavit.errors import InputError
from dynavit.functional import full_precision


def leave_one_out(rewards: Tensor) -> Tensor:
    """Return each reward minus the mean of the other decisions' rewards for the same image.

    That mean does not depend on the decision it is compared with, so the gradient stays unbiased, and
    it needs no learned baseline. RLOO, Kool et al. 2019,
    https://openreview.net/forum?id=r1lgTGL5DE, section 3.

    Args:
        rewards: ``(K, B)``, larger is better.

    Returns:
        Advantages ``(K, B)`` in fp32 (fp64 for fp64 rewards); their sum over K is zero.

    Raises:
        InputError: fewer than two decisions an image.

    Example:
        >>> import torch
        >>> leave_one_out(torch.tensor([[1.0], [2.0], [6.0]])).T
        tensor([[-3.0000, -1.5000,  4.5000]])
    """
    if rewards.ndim != 2 or len(rewards) < 2:
        raise InputError(
            f"leave_one_out: rewards of shape {tuple(rewards.shape)}; it compares K >= 2 decisions of each image: "
            f"draw at least two and stack their rewards as (K, B)."
        )
    rewards = full_precision(rewards)
    return (rewards - rewards.mean(dim=0)) * (len(rewards) / (len(rewards) - 1))


def policy_gradient_loss(log_prob: Tensor, rewards: Tensor) -> Tensor:
    """Return a loss whose gradient is an unbiased estimate of that of ``-E[reward]``.

    REINFORCE (Williams 1992) with the leave-one-out baseline. Only the gradient means something; the
    value does not. The rewards may be anything that can be computed, such as whether the answer was
    right, and get no gradient.

    Args:
        log_prob: ``(K, B)``, ``selection.log_prob`` of K decisions drawn for the same images; summed
            over stages where there are several.
        rewards: ``(K, B)``, what each decision led to; larger is better.

    Returns:
        A scalar: the mean over decisions and images.

    Raises:
        InputError: different shapes, or fewer than two decisions an image.
    """
    if log_prob.shape != rewards.shape:
        raise InputError(
            f"policy_gradient_loss: log_prob of shape {tuple(log_prob.shape)} and rewards of shape "
            f"{tuple(rewards.shape)}; both are (K, B), one number for each decision and image."
        )
    return -(leave_one_out(rewards.detach()) * log_prob).mean()
