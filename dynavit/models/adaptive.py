"""As many tokens as an image needs: thresholds on the scores, calibrated to a mean number of tokens.

Learned thresholds: LTMP, Bonnaerens & Dambre 2023, https://arxiv.org/abs/2307.10780, section 3.1. Here they are
quantiles of the scores on some images, so nothing has to be trained.

Shapes: B batch, S stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.models.pruned_vit import PrunedViT
from dynavit.models.trace import Trace
from dynavit.selectors.functional import hard_topk

_ALWAYS, _NEVER = float("-inf"), float("inf")


@torch.inference_mode()
def calibrate(
    model: PrunedViT,
    batches: Callable[[], Iterable[Any]],
    keep_ratios: float | Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Find and set thresholds at which the model keeps, on average over images, what its keep ratios ask for.

    Images with much to see then keep more tokens, others fewer. Stages are calibrated one after the other,
    each with the thresholds of those before it, so the images are run once for every stage.

    Args:
        model: scores tokens; set to eval mode, and given the thresholds.
        batches: returns the images to calibrate on, the same ones at each call: batches as the model takes them,
            or pairs of such a batch and a mapping with the cameras and views. Where there are none, cameras are
            unknown.
        keep_ratios: mean ratios, as :meth:`PrunedViT.set_keep_ratio` takes them; the model's own if None.

    Returns:
        One threshold a stage.

    Raises:
        InputError: no images, impossible ratios, or a model that chooses without logits. Whatever is raised, the model
            has the ratios and thresholds that it had.
    """
    model.eval()
    before = model.keep_ratios, model.thresholds
    num_stages = len(model.stages)
    found: list[float] = []
    try:
        if keep_ratios is not None:
            model.set_keep_ratio(keep_ratios)
        for _ in range(num_stages):
            model.set_thresholds([*found, *[_ALWAYS] * (num_stages - len(found))])
            found.append(_calibrated(model, len(found), batches()))
        model.set_thresholds(found)
    except BaseException:  # an interruption, too, leaves the model as it was
        model.keep_ratios, model.thresholds = before
        raise
    return tuple(found)


def kept_counts(trace: Trace) -> Tensor:
    """Return how many tokens each stage kept of each image, ``(B, S)`` int64, those that a reducer made not included.

    Args:
        trace: of a forward in eval mode by a model with thresholds, which select at every stage.
    """
    patches = trace.candidates[0].sum(dim=1)
    return torch.stack([(fraction.double() * patches).round().long() for fraction in trace.decided], dim=1)


def _calibrated(model: PrunedViT, stage: int, batches: Iterable[Any]) -> float:
    """Return the threshold of a stage; those before it have theirs, and it keeps everything as yet."""
    others, wanted = [], 0
    for batch in batches:
        images, inputs = batch if isinstance(batch, tuple) else (batch, None)
        _, trace = model(images, return_trace=True, **(_unknown(model, images) if inputs is None else inputs))
        patches = trace.candidates[0].sum(dim=1)
        scores, candidates = trace.scores[stage], trace.candidates[stage]
        best = hard_topk(scores, candidates, 1)  # kept whatever the threshold
        others.append(scores[candidates & ~best].cpu())
        wanted += int((model.stage_counts(patches)[stage] - 1).sum())
    if not others:
        raise InputError("calibrate: there are no images to calibrate on.")
    return _threshold(torch.cat(others), wanted)


def _unknown(model: PrunedViT, images: Any) -> dict[str, Tensor]:
    return model.unknown_cameras(len(images["patches"] if isinstance(images, Mapping) else images))


def _threshold(scores: Tensor, count: int) -> float:
    """Return a value that ``count`` of the scores exceed, half way between two of them."""
    if count >= len(scores):
        return _ALWAYS
    if count <= 0:
        return _NEVER
    ordered = scores.sort(descending=True).values
    return float((ordered[count - 1] + ordered[count]) / 2)
