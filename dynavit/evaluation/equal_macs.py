"""Keep ratios at which different methods cost the same.

A budget is a number of multiply-accumulates (MACs) an image, scoring included. Shapes: M images, S stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dynavit.cost.macs import closed_form_macs, mean_macs, tokens_per_stage
from dynavit.errors import InputError
from dynavit.models import PrunedViT, prune
from dynavit.models.pruning import quarters
from dynavit.models.thresholds import calibrate, kept_counts

_TRIES = 8


def plain_dropping_macs(dense: PrunedViT, keep_ratio: float) -> int:
    """Return the MACs of dropping tokens at a quarter, half and three quarters of the depth, choosing them for free.

    Args:
        dense: any model around the backbone.
        keep_ratio: r keeps r, r^2 and r^3 of the patches.
    """
    stages = quarters(dense.adapter.depth)
    model = prune(dense.backbone, stages=stages, keep_ratio=keep_ratio, scorer="random", reducer="drop")
    return closed_form_macs(model)


def largest_keep_ratio(model: PrunedViT, budget: float) -> float:
    """Return the largest keep ratio, in thousandths, whose closed-form MACs do not exceed a budget.

    Args:
        model: not changed.
        budget: MACs an image.

    Raises:
        InputError: no ratio is cheap enough; or the reducer cannot leave so few tokens.
    """
    if closed_form_macs(model, keep_ratios=1.0) <= budget:
        return 1.0
    enough, too_many = 0, 1000  # thousandths; the first is not tried yet
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        if closed_form_macs(model, keep_ratios=middle / 1000) <= budget:
            enough = middle
        else:
            too_many = middle
    if not enough:
        least = closed_form_macs(model, keep_ratios=0.001)
        raise InputError(f"at its lowest keep ratio it still costs {least / 1e9:.3g} GMACs.")
    _check_merges(model, enough / 1000)
    return enough / 1000


def calibrate_to_budget(model: PrunedViT, budget: float, batches: Callable[[], Iterable[Tensor]]) -> float:
    """Set thresholds at which the images cost a budget on average, or just less; returns the mean keep ratio.

    Images that keep more than the mean cost more than those that keep less save, since attention is quadratic. So
    the closed form of the mean keep ratio is only near the mean of the costs, and what separates the two, which
    hardly depends on the ratio, is found by trying.

    Args:
        model: reads scores; gets thresholds.
        budget: mean MACs an image.
        batches: as for :func:`~dynavit.models.thresholds.calibrate`.

    Raises:
        InputError: no keep ratio is cheap enough, or a model that chooses without scores.
    """
    tried: dict[float, tuple[float, tuple[float, ...]]] = {}  # mean MACs and thresholds by keep ratio

    def attempt(ratio: float) -> float:
        thresholds = calibrate(model, batches, ratio)
        macs = mean_macs(model, image_counts(model, batches()))
        tried[ratio] = macs, thresholds
        return macs

    excess = 0.0
    for _ in range(_TRIES):
        ratio = largest_keep_ratio(model, budget - excess)
        if ratio == 1:
            model.set_keep_ratio(1.0)
            return 1.0
        if ratio in tried:
            break
        excess = attempt(ratio) - closed_form_macs(model, keep_ratios=ratio)
    cheap = [ratio for ratio, (macs, _) in tried.items() if macs <= budget]
    ratio = max(cheap) if cheap else min(tried)
    while tried[ratio][0] > budget:
        ratio = round(ratio - 0.001, 3)
        if ratio <= 0:
            raise InputError(f"no thresholds get below {budget / 1e9:.3g} GMACs on average.")
        attempt(ratio)
    model.set_keep_ratio(ratio)
    model.set_thresholds(tried[ratio][1])
    return ratio


@torch.inference_mode()
def image_counts(model: PrunedViT, batches: Iterable[Tensor]) -> Tensor:
    """Return how many tokens a model with thresholds keeps of each image at each stage: ``(M, S)`` on the CPU."""
    return torch.cat([kept_counts(model(images, return_trace=True)[1]).cpu() for images in batches])


def _check_merges(model: PrunedViT, keep_ratio: float) -> None:
    """Refuse what :class:`~dynavit.reducers.Merge` would: merging at most halves the tokens at a stage."""
    if model.scorers or not model.stages:
        return
    shortened = model.at_ratio(keep_ratio)
    present = tokens_per_stage(model.at_ratio(1.0))[0]
    for left in tokens_per_stage(shortened):
        if present - left > present // 2:
            raise InputError(
                f"it would have to leave {left} of {present} tokens at a stage, and merging at most halves them."
            )
        present = left
