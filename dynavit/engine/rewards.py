"""What a selector that learns from a reward is rewarded for; nothing here needs a derivative."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dynavit.config import LossConfig
from dynavit.errors import InputError, did_you_mean
from dynavit.models import PrunedViT
from dynavit.text import first_line

Reward = Callable[[Any, Tensor], Tensor]
"""From the model's training output for B images and their targets to one number an image ``(B,)``."""


def create_reward(name: str) -> Reward:
    """Return a reward by name, or import ``package.module:function``.

    Raises:
        InputError: no such name, module or function, or one that does not take two arguments.
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
    except Exception as error:  # whatever somebody's module does
        raise InputError(f"loss.reward={name} cannot be imported: {first_line(error)}.") from error
    try:
        inspect.signature(reward).bind(None, None)
    except (TypeError, ValueError):
        raise InputError(f"loss.reward={name} is no function of (output, targets).") from None
    return reward


def check_reward(settings: LossConfig, model: PrunedViT) -> None:
    """Refuse a reward that does not exist, or that nothing in the model would learn from.

    Raises:
        InputError: naming the setting.
    """
    if model.selector.needs_reward and model.predictors:
        create_reward(settings.reward)
    elif settings.reward != LossConfig().reward:
        raise InputError(
            f"loss.reward={settings.reward}: nothing here learns from a reward; leave it out, or set "
            f"model.selector.name=score_function, with a scorer that learns."
        )


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
