"""What a selector that learns from a reward is rewarded for; nothing here needs a derivative.

A package offers a reward through an entry point, so that the command line knows it as well::

    setup(..., entry_points={"dynavit.rewards": ["mine = my_package:my_reward"]})
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dynavit.config import LossConfig
from dynavit.errors import InputError, did_you_mean
from dynavit.models import PrunedViT
from dynavit.parts import load_entry_points

Reward = Callable[[Any, Tensor], Tensor]
"""From the model's training output for B images and their targets to one number an image ``(B,)``."""
_REWARDS: dict[str, Reward] = {}
_R = TypeVar("_R", bound=Reward)


def register_reward(name: str, *, override: bool = False) -> Callable[[_R], _R]:
    """Make a function of ``(output, targets)`` available as ``loss.reward=name``.

    Raises:
        InputError: the name is taken and ``override`` is False, or this is no such function.
    """

    def register(function: _R) -> _R:
        try:
            inspect.signature(function).bind(None, None)
        except (TypeError, ValueError):
            raise InputError(f"reward {name!r}: {function!r} is no function of (output, targets).") from None
        if _REWARDS.get(name) not in (None, function) and not override:
            raise InputError(
                f"reward {name!r} is already registered by {_REWARDS[name].__module__}; choose another name or pass "
                f"override=True."
            )
        _REWARDS[name] = function
        return function

    return register


def create_reward(name: str) -> Reward:
    """Return a reward by name.

    Raises:
        InputError: there is none of this name; the message lists what exists.
    """
    _load_entry_points()
    if name not in _REWARDS:
        raise InputError(
            f"loss.reward={name}:{did_you_mean(name, _REWARDS)} choose one of {', '.join(_REWARDS)}, or register a "
            f"function of your own with dynavit.tasks.rewards.register_reward."
        )
    return _REWARDS[name]


@cache
def _load_entry_points() -> None:
    load_entry_points("reward", register_reward)


def check_reward(settings: LossConfig, model: PrunedViT) -> None:
    """Refuse a reward that does not exist, or that nothing in the model would learn from.

    Raises:
        InputError: naming the setting.
    """
    if model.selector.needs_reward and model.scorers:
        create_reward(settings.reward)
    elif settings.reward != LossConfig().reward:
        raise InputError(
            f"loss.reward={settings.reward}: nothing here learns from a reward; leave it out, or set "
            f"model.selector.name=score_function, with a scorer that learns."
        )


@register_reward("likelihood")
def likelihood(output: Any, targets: Tensor) -> Tensor:
    """Log-likelihood of the right class."""
    return -F.cross_entropy(_logits(output), targets, reduction="none")


@register_reward("correct")
def correct(output: Any, targets: Tensor) -> Tensor:
    """1 where the best class is the right one, else 0: accuracy itself, which has no gradient."""
    labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
    return (_logits(output).argmax(dim=1) == labels).float()


@register_reward("rank1")
def rank1(output: Any, targets: Tensor) -> Tensor:
    """1 where an image's nearest neighbour in the batch has the same identity, else 0: rank-1 itself."""
    if not hasattr(output, "features"):
        raise InputError("loss.reward=rank1 compares embeddings: it needs task=reid.")
    features = output.features.float()
    distances = torch.cdist(features, features).fill_diagonal_(float("inf"))
    return (targets[distances.argmin(dim=1)] == targets).float()


def _logits(output: Any) -> Tensor:
    return (output.logits if hasattr(output, "logits") else output).float()
