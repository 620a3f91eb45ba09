"""Sweeps in which every image keeps as many tokens as it needs."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from dynavit.cost.macs import mean_macs
from dynavit.errors import InputError
from dynavit.models import PrunedViT
from dynavit.models.thresholds import calibrate
from dynavit.runs.loading import random_samples
from dynavit.runs.open import Run
from dynavit.runs.processes import is_main_process
from dynavit.tasks import Task

_BINS = 10


def check_adaptive(model: PrunedViT) -> None:
    """Refuse a model whose tokens thresholds cannot choose.

    Raises:
        InputError: its reducer or selector reads no scores.
    """
    try:
        copy(model).set_thresholds([0.0] * len(model.stages))
    except InputError as error:
        raise InputError(f"evaluate.adaptive=true (--adaptive): {error} Evaluate this model without it.") from None


def calibrated(run: Run, task: Task, data: Any, ratios: list[float]) -> list[PrunedViT]:
    """Return the run's model, weights shared, with thresholds calibrated to each of the keep ratios.

    All of them are calibrated on the same training images, a fixed random part. They stay in memory, because each
    stage needs a pass of its own over them.

    Args:
        run: whose model scores tokens.
        task: of the run.
        data: opened with the training split, without augmentation.
        ratios: as :meth:`PrunedViT.set_keep_ratio` takes them.

    Raises:
        InputError: not one training image can be read.
    """
    assert run.config is not None
    settings = run.config.data
    count, seed = run.config.evaluate.calibration_images, run.config.seed
    samples = random_samples(data.train, count, settings.batch_size, settings.workers, seed)

    def batches() -> Any:
        for images, indices in samples:
            yield images.to(run.device), task.inputs(run.model, data, indices, train=True)

    models = []
    for ratio in tqdm(ratios, desc="calibrating", leave=False, disable=None if is_main_process() else True):
        model = copy(run.model)
        calibrate(model, batches, ratio)
        # not every process may read the same images of a stream
        (thresholds,) = broadcast_object_list([model.thresholds])
        model.set_thresholds(thresholds)
        models.append(model)
    return models


def token_statistics(model: PrunedViT, counts: Tensor) -> dict[str, Any]:
    """Return what a row says of the tokens kept ``(S, stages)`` of each image; see :mod:`dynavit.report.table`.

    ``thresholds`` are the model's, None where everything is kept.
    """
    assert model.thresholds is not None
    last = counts[:, -1].numpy()
    # bins of a whole number of tokens: else some would hold one more value than others
    edges = int(last.min()) + np.arange(_BINS + 1) * -(-(int(last.max()) + 1 - int(last.min())) // _BINS)
    images, _ = np.histogram(last, bins=edges)
    return {
        "tokens": counts.double().mean(dim=0).tolist(),
        "gmacs": mean_macs(model, counts) / 1e9,
        "tokens_p95": int(np.percentile(last, 95, method="inverted_cdf")),
        "tokens_histogram": {"edges": edges.tolist(), "images": images.tolist()},
        "thresholds": [threshold if math.isfinite(threshold) else None for threshold in model.thresholds],
    }
