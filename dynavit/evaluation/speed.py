"""How fast the models of a sweep are, compared with the first of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dynavit.cost.timing import measure, median_ratio
from dynavit.models import PrunedViT

Inputs = Callable[[PrunedViT, Tensor], Mapping[str, Tensor]]

_IMAGES, _BATCHES = 16, 2


def images_timed(models: Sequence[PrunedViT], batch_sizes: Sequence[int]) -> int:
    """Return how many images :func:`time_models` can use."""
    return max((size * _num_batches(models, size) for size in batch_sizes), default=0)


@torch.inference_mode()
def time_models(
    models: Sequence[PrunedViT],
    images: Tensor,
    indices: Tensor,
    inputs: Inputs,
    batch_sizes: Sequence[int],
    rounds: int,
) -> list[dict[str, Any]]:
    """Time models on the same images, interleaved; speedups are medians of ratios within a round.

    Where images keep different numbers of tokens, a batch is as slow as its longest image. If one of the models does
    that, all are timed on at least 2 batches and 16 images in turn, which should be real ones.

    Args:
        models: in eval mode; the first is what the others are compared with.
        images: ``(M, 3, H, W)`` on the models' device; used again from the first where there are too few.
        indices: ``(M,)`` their indices in the data.
        inputs: from a model and indices to what else it is given.
        batch_sizes: at which.
        rounds: of measurement.

    Returns:
        For each model, by batch size as text, ``images_per_second``, ``speedup`` and its range over the rounds,
        ``speedup_range``.
    """
    found: list[dict[str, Any]] = [{} for _ in models]
    for size in tqdm(batch_sizes, desc="speed", leave=False, disable=None):
        taken = torch.arange(size * _num_batches(models, size)) % len(images)
        calls = {}
        for number, model in enumerate(models):
            batches = [(images[rows], inputs(model, indices[rows])) for rows in taken.split(size)]
            calls[str(number)] = partial(_run, model, batches)
        seconds = measure(calls, rounds=rounds)
        for number, speeds in enumerate(found):
            mine = seconds[str(number)]
            speedup, low, high = median_ratio(seconds["0"], mine)
            speeds[str(size)] = {
                "images_per_second": len(taken) / sorted(mine)[len(mine) // 2],
                "speedup": speedup,
                "speedup_range": [low, high],
            }
    return found


def _num_batches(models: Sequence[PrunedViT], size: int) -> int:
    differ = any(model.thresholds is not None for model in models)
    return max(_BATCHES, -(-_IMAGES // size)) if differ else 1


def _run(model: PrunedViT, batches: Sequence[tuple[Tensor, Mapping[str, Tensor]]]) -> None:
    for images, inputs in batches:
        model(images, **inputs)
