"""How fast models are on images of the data, compared with the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from dynavit.cost.timing import measure, median_ratio
from dynavit.evaluation.variants import Variant
from dynavit.models import PrunedViT
from dynavit.runs.loading import random_samples
from dynavit.tasks import Task

_IMAGES, _BATCHES = 16, 2


@torch.inference_mode()
def time_models(
    variants: Sequence[Variant], task: Task, data: Any, batch_sizes: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Time models on the same validation images, interleaved; speedups are medians of ratios within a round.

    Where images keep different numbers of tokens, a batch is as slow as its longest image. If one of the models does
    that, all are timed on at least 2 batches and 16 images in turn. A rival gets the images at its own size: resizing
    them is not timed.

    Args:
        variants: on one device; the first is what the others are compared with.
        task: says what else a model is given.
        data: whose validation images, a fixed random part, are used; again from the first where there are too few.
        batch_sizes: at which; none measures nothing.
        rounds: of measurement.

    Returns:
        For each variant, by batch size as text, ``images_per_second``, ``speedup`` and its range over the rounds,
        ``speedup_range``.
    """
    throughputs: list[dict[str, Any]] = [{} for _ in variants]
    if not batch_sizes:
        return throughputs
    count = max(size * _num_batches(variants, size) for size in batch_sizes)
    samples = random_samples(data.validation, count, task.config.data.batch_size)
    images, indices = (torch.cat(parts) for parts in zip(*samples, strict=True))
    images = images.to(next(variants[0].model.parameters()).device)
    for size in tqdm(batch_sizes, desc="speed", leave=False, disable=None):
        order = torch.arange(size * _num_batches(variants, size)) % len(images)
        calls = {}
        for number, variant in enumerate(variants):
            model, own = variant.model, _prepared(images, variant)
            batches = [(own[part], task.inputs(model, data, indices[part])) for part in order.split(size)]
            calls[str(number)] = partial(_run, model, batches)
        seconds = measure(calls, rounds=rounds)
        for number, throughput in enumerate(throughputs):
            times = seconds[str(number)]
            speedup, low, high = median_ratio(seconds["0"], times)
            throughput[str(size)] = {
                "images_per_second": len(order) / median(times),
                "speedup": speedup,
                "speedup_range": [low, high],
            }
    return throughputs


def _prepared(images: Tensor, variant: Variant) -> Tensor:
    if variant.image_size is None:
        return images
    smaller = F.interpolate(images.flatten(0, -4), variant.image_size, mode="bilinear")
    return smaller.unflatten(0, images.shape[:-3])


def _num_batches(variants: Sequence[Variant], size: int) -> int:
    differ = any(variant.model.thresholds is not None for variant in variants)
    return max(_BATCHES, -(-_IMAGES // size)) if differ else 1


def _run(model: PrunedViT, batches: Sequence[tuple[Tensor, Mapping[str, Tensor]]]) -> None:
    for images, inputs in batches:
        model(images, **inputs)
