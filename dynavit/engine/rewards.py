"""What a selector that learns from a reward is rewarded for; nothing here needs a derivative."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dynavit.errors import InputError, did_you_mean

Reward = Callable[[Any, Tensor], Tensor]
"""From the model's training output for B images and their targets to one number an image ``(B,)``."""


def create_reward(name: str) -> Reward:
    """Return a reward by name, or import ``package.module:function``.

    Raises:
        InputError: no such name, module or function.
    """
    if name in _REWARDS:
        return _REWARDS[name]
    module, colon, function = name.partition(":")
    if not colon:
        known = ", ".join(_REWARDS)
        raise InputError(
            f"loss.reward={name}:{did_you_mean(name, list(_REWARDS))} choose one of {known}, or name your own "
            f"function as package.module:function."
        )
    try:
        reward: Reward = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"loss.reward={name} cannot be imported: {error}.") from None
    if not callable(reward):
        raise InputError(f"loss.reward={name} is no function of (output, targets).")
    return reward


def likelihood(output: Any, targets: Tensor) -> Tensor:
    """Log-likelihood of the right class."""
    return -F.cross_entropy(_logits(output), targets, reduction="none")


def correct(output: Any, targets: Tensor) -> Tensor:
    """1 where the best class is the right one, else 0: accuracy itself, which has no gradient."""
    labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
    return (_logits(output).argmax(dim=1) == labels).float()


def rank1(output: Any, targets: Tensor) -> Tensor:
    """1 where an image's nearest neighbour in the batch has the same identity, else 0: rank-1 itself."""
    if not hasattr(output, "features"):
        raise InputError("loss.reward=rank1 compares embeddings: it needs task=reid.")
    features = output.features.float()
    distances = torch.cdist(features, features).fill_diagonal_(float("inf"))
    return (targets[distances.argmin(dim=1)] == targets).float()


def _logits(output: Any) -> Tensor:
    return (output.logits if hasattr(output, "logits") else output).float()


_REWARDS: dict[str, Reward] = {"likelihood": likelihood, "correct": correct, "rank1": rank1}
