"""What is said of stages and keep ratios, checked.

Shapes: N original patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.models.counts import CountRule
from dynavit.numbers import checked_whole, is_number

if TYPE_CHECKING:
    from dynavit.models.pruned_vit import PrunedViT


def checked_stages(stages: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return stages as a tuple.

    Raises:
        InputError: not block numbers of this backbone, in rising order.
    """
    try:
        if any(isinstance(stage, bool) for stage in stages):
            raise TypeError
        stages = tuple(index(stage) for stage in stages)
    except TypeError:
        raise InputError(f"stages={stages!r}: give a list of block numbers, such as (3, 6, 9).") from None
    if list(stages) != sorted(set(stages)) or any(not 0 <= stage < depth for stage in stages):
        raise InputError(
            f"stages={list(stages)}: stages are block numbers in rising order, each from 0 to "
            f"{depth - 1} for this backbone of {depth} blocks."
        )
    return stages


def check_counts(counts: Sequence[int | Tensor], num_stages: int) -> None:
    """Refuse numbers of tokens that cannot be kept. Those in tensors are not read: a GPU would have to wait.

    Raises:
        InputError: another number than of stages, or something other than whole numbers from 1.
    """
    if not isinstance(counts, Sequence) or len(counts) != num_stages:
        number = len(counts) if isinstance(counts, Sequence) else repr(counts)
        raise InputError(f"{number} keep_counts for {num_stages} stages: give a list of one number a stage.")
    for count in counts:
        if isinstance(count, Tensor):
            fits = not count.is_floating_point() and count.ndim <= 1
        else:
            fits = isinstance(count, int | torch.SymInt) and not isinstance(count, bool) and count >= 1
        if not fits:
            raise InputError(
                f"keep_counts={list(counts)}: give whole numbers from 1, or int64 tensors of shape () or (B,)."
            )


def checked_ratios(keep_ratio: float | Sequence[float], num_stages: int, rule: CountRule) -> tuple[float, ...]:
    """Return one ratio a stage, in thousandths.

    Raises:
        InputError: a ratio outside (0, 1], rising ratios, or another number than of stages.
    """
    several = isinstance(keep_ratio, Sequence) and not isinstance(keep_ratio, str)
    numbers: Any = keep_ratio if several else [keep_ratio]
    if not all(is_number(ratio) for ratio in numbers):
        raise InputError(f"keep_ratio={keep_ratio!r}: give a number in (0, 1], or a list of them, one a stage.")
    if isinstance(keep_ratio, Sequence):
        ratios = tuple(float(ratio) for ratio in keep_ratio)
        if len(ratios) != num_stages:
            raise InputError(
                f"keep_ratios={list(ratios)}: {len(ratios)} ratios for {num_stages} stages; give one "
                f"ratio a stage, or a single number."
            )
    else:
        if not 0 < keep_ratio <= 1:
            raise InputError(f"keep_ratio={keep_ratio}: a keep ratio lies in (0, 1].")
        nth = range(1, num_stages + 1)
        if rule == "original":
            ratios = tuple(float(keep_ratio) ** number for number in nth)
        elif rule == "linear":
            ratios = tuple(1 - (1 - float(keep_ratio)) * number / num_stages for number in nth)
        else:
            ratios = (float(keep_ratio),) * num_stages
    if any(not 0 < ratio <= 1 for ratio in ratios):
        raise InputError(f"keep_ratios={list(ratios)}: every keep ratio lies in (0, 1].")
    if rule != "current" and list(ratios) != sorted(ratios, reverse=True):
        raise InputError(
            f"keep_ratios={list(ratios)}: fractions of the original patches, none larger than the one before."
        )
    return tuple(max(round(ratio, 3), 0.001) for ratio in ratios)


def checked_thresholds(thresholds: Sequence[float], model: PrunedViT) -> tuple[float, ...]:
    """Return one threshold a stage.

    Raises:
        InputError: another number than of stages, no numbers, or a model that chooses without logits.
    """
    num_stages = len(model.stages)
    if not isinstance(thresholds, Sequence) or not all(is_number(threshold) for threshold in thresholds):
        raise InputError(f"thresholds={thresholds!r}: give a list of numbers, one a stage.")
    if len(thresholds) != num_stages or not num_stages:
        raise InputError(f"{len(thresholds)} thresholds for {num_stages} stages; give one a stage.")
    if any(math.isnan(threshold) for threshold in thresholds):
        raise InputError(f"thresholds={list(thresholds)}: NaN is no threshold.")
    if not model.scorers or not model.selector.needs_scores:
        chooser = model.selector if model.scorers else model.reducer
        raise InputError(f"thresholds compare logits, which {type(chooser).__name__} does not read.")
    return tuple(float(threshold) for threshold in thresholds)


def checked_rule(rule: str) -> CountRule:
    """Return the rule.

    Raises:
        InputError: there is none of this name.
    """
    if rule not in ("original", "linear", "current"):
        raise InputError(f"count_rule={rule!r}: 'original', 'linear' or 'current'.")
    return rule  # type: ignore[return-value]


def ratios_removing(removed: int, num_patches: int, num_stages: int) -> tuple[float, ...]:
    """Return the keep ratios at which every stage removes the same number of tokens, ToMe's r.

    Exact for up to 1000 patches, where every count has a ratio in thousandths of its own.

    Raises:
        InputError: nothing would be left.

    Example:
        >>> ratios_removing(8, 196, 12)[:3]
        (0.96, 0.919, 0.878)
    """
    for name, value in (("removed", removed), ("num_patches", num_patches), ("num_stages", num_stages)):
        checked_whole(name, value, 1 if name == "num_stages" else 0)
    left = [num_patches - removed * (stage + 1) for stage in range(num_stages)]
    if left[-1] < 1:
        raise InputError(f"removing {removed} of {num_patches} patches {num_stages} times leaves none.")
    return tuple(-(-1000 * count // num_patches) / 1000 for count in left)
