"""What of a run is evaluated: the dense model it started from, keep ratios, and thresholds at these."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from dynavit.cost.macs import closed_form_macs
from dynavit.data.transforms import image_size_of
from dynavit.errors import InputError
from dynavit.models import PrunedViT, prune
from dynavit.models.thresholds import calibrate
from dynavit.runs.build import build_start, starts_trained
from dynavit.runs.loading import random_samples
from dynavit.runs.open import Run
from dynavit.runs.pair import after_move
from dynavit.runs.processes import is_main_process
from dynavit.tasks import Task


@dataclass(frozen=True)
class Variant:
    """A model to evaluate, and what its row says of it.

    Attributes:
        kind: "dense", "pruned", "adaptive" where it has thresholds, or "rival" (see :mod:`dynavit.evaluation.rivals`).
        keep_ratio: what it keeps, on average where images differ, or what each stage keeps.
        model: in eval mode.
        trained: on these classes, so that its accuracy means something.
        about: what else stands in its row.
        preprocessing: of its own images; None for what sees the same ones as the first.
    """

    kind: str
    keep_ratio: float | Sequence[float]
    model: PrunedViT
    trained: bool = True
    about: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] | None = None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of its own images in pixels; None for what sees the same ones as the first."""
        return None if self.preprocessing is None else image_size_of(self.preprocessing)

    @property
    def macs(self) -> float:
        """MACs of one of its images; where images differ, of one that keeps just the ratio."""
        return closed_form_macs(self.model, image_size=self.image_size)


def run_variants(run: Run, task: Task, data: Any, ratios: Sequence[float], adaptive: bool) -> list[Variant]:
    """Return the dense model, then the run's model at each ratio, and behind it its twin with thresholds.

    Where no dense model knows the classes, the run's own model with all tokens kept is always among them.

    Args:
        run: with a configuration.
        task: of the run.
        data: opened, for thresholds with the training split, without augmentation.
        ratios: as :meth:`PrunedViT.set_keep_ratio` takes them; of no effect for a dense run.
        adaptive: whether to add the twins, for ratios below 1.

    Raises:
        InputError: an impossible ratio, or not one training image can be read.
    """
    if not run.model.stages:
        return [Variant("dense", 1.0, run.model)]
    dense = _dense_start(run)
    if dense is None and 1.0 not in ratios:
        ratios = [1.0, *ratios]  # something has to be there to compare with
    variants = [Variant("dense", 1.0, dense or prune(run.model, stages=()).eval(), trained=dense is not None)]
    pruned = [Variant("pruned", ratio, run.model.at_ratio(ratio)) for ratio in ratios]
    twins = iter(_adaptive_twins(run, task, data, [ratio for ratio in ratios if ratio < 1]) if adaptive else ())
    for variant, ratio in zip(pruned, ratios, strict=True):
        variants.append(variant)
        if adaptive and ratio < 1:
            variants.append(next(twins))
    return variants


def check_adaptive(model: PrunedViT) -> None:
    """Refuse a model whose tokens thresholds cannot choose.

    Raises:
        InputError: its reducer or selector reads no scores.
    """
    try:
        copy(model).set_thresholds([0.0] * len(model.stages))
    except InputError as error:
        raise InputError(f"evaluate.adaptive=true (--adaptive): {error} Evaluate this model without it.") from None


class CalibrationImages:
    """Training images that thresholds are set on: read when they are first asked for, then kept.

    All thresholds are calibrated on the same ones, a fixed random part, which each stage goes through anew.

    Args:
        model: whose device they go to.
        task: says by its seed which.
        data: opened with the training split, without augmentation.
        count: how many, at most.
    """

    def __init__(self, model: PrunedViT, task: Task, data: Any, count: int) -> None:
        self.model, self.task, self.data, self.count = model, task, data, count
        self._samples: list[tuple[Tensor, Tensor]] | None = None

    def __call__(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield images ``(B, 3, H, W)`` and what else the model is given with them."""
        config, device = self.task.config, next(self.model.parameters()).device
        if self._samples is None:
            size, workers = config.data.batch_size, config.data.workers
            self._samples = random_samples(self.data.train, self.count, size, workers, config.seed)
        for images, indices in self._samples:
            yield images.to(device), self.task.inputs(self.model, self.data, indices, train=True)


def _adaptive_twins(run: Run, task: Task, data: Any, ratios: Sequence[float]) -> Iterator[Variant]:
    """Yield the run's model, weights shared, with thresholds calibrated to each of the keep ratios."""
    images = CalibrationImages(run.model, task, data, task.config.evaluate.calibration_images)
    for ratio in tqdm(ratios, desc="calibrating", leave=False, disable=None if is_main_process() else True):
        model = copy(run.model)
        calibrate(model, images, ratio)
        # not every process may read the same images of a stream
        (thresholds,) = broadcast_object_list([model.thresholds])
        model.set_thresholds(thresholds)
        yield Variant("adaptive", ratio, model)


def _dense_start(run: Run) -> PrunedViT | None:
    """Return the model that the run started from, if that knew the classes."""
    assert run.config is not None
    if run.config.model.checkpoint is None and not starts_trained(run.config, run.class_names):
        return None  # its head was random: there is nothing to compare with
    config = after_move(run.config, run.path)
    parts: dict[str, Any] = {"side": run.model.side.options()} if run.model.side else {}
    if run.model.num_spectra > 1:
        parts["spectra"] = run.model.num_spectra
    try:
        start = build_start(config, run.class_names, parts)
    except InputError as error:
        warnings.warn(
            f"the model that the run started from is gone, so there is no accuracy of a dense model: {error}",
            stacklevel=2,
        )
        return None
    return start.dense.to(run.device) if start.dense_is_trained else None
