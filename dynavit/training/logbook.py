"""What a run writes for TensorBoard and other trackers."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker, get_available_trackers
from torch import Tensor

from dynavit.config import Config
from dynavit.config.schema import leaves
from dynavit.data.transforms import to_pixels
from dynavit.errors import InputError, did_you_mean
from dynavit.models import PrunedViT
from dynavit.report.tokens import trace_grid

TENSORBOARD = "tensorboard"
_PROJECT = "dynavit"
_PICTURES: dict[str, dict[str, Any]] = {TENSORBOARD: {"dataformats": "NHWC"}, "wandb": {}}
"""Trackers that show pictures, and how they are told of their shape."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse what Accelerate has no tracker for, and what is not installed.

    Raises:
        InputError: naming what there is.
    """
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(
                f"train.trackers: there is no tracker {name!r}; choose of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}."
                f"{did_you_mean(name, LOGGER_TYPE_TO_CLASS)}"
            )
        if name not in map(str, get_available_trackers()):
            raise InputError(f"train.trackers: {name} is not installed; install its package, or leave it out.")


class Logbook:
    """Scalars and pictures, by optimiser step: for TensorBoard in the run's own folder, or wherever a tracker logs.

    Args:
        accelerator: of the run.
        config: of the run.
        step: where the run stands; what an interrupted one wrote beyond it is hidden.
        preprocessing: the model's, to show images as they looked.
    """

    def __init__(self, accelerator: Accelerator, config: Config, step: int, preprocessing: Mapping[str, Any]) -> None:
        self.accelerator = accelerator
        self.preprocessing = preprocessing
        names = {"wandb": {"name": config.name}, "mlflow": {"run_name": config.name}}
        if TENSORBOARD in config.train.trackers:  # in the run's folder itself, and not below a project's
            accelerator.log_with.append(TensorBoardTracker("", str(config.run_dir), purge_step=step + 1))
        accelerator.init_trackers(_PROJECT, init_kwargs=names)
        for tracker in accelerator.trackers:
            if tracker.name != TENSORBOARD:  # which would write a folder for them
                tracker.store_init_configuration({key: _plain(value) for key, value in leaves(config)})
        self._since = time.perf_counter(), step

    def step(
        self,
        step: int,
        losses: Mapping[str, Tensor],
        norms: Mapping[str, Tensor],
        temperature: float,
        lr: float,
        batch_size: int,
    ) -> None:
        """Log one optimiser step; the speed is the mean since the last one logged."""
        values = {name if "/" in name else f"train/{name}": float(value) for name, value in losses.items()}
        values |= {f"gradient/{part}": float(norm) for part, norm in norms.items()}
        if len(norms) == 2:
            values["gradient/fast_over_backbone"] = float(norms["fast"] / norms["backbone"].clamp(min=1e-12))
        start, first = self._since
        batches = (step - first) * self.accelerator.gradient_accumulation_steps
        images = batches * batch_size * self.accelerator.num_processes
        values["speed/images_per_second"] = images / max(time.perf_counter() - start, 1e-9)
        values |= {"schedule/temperature": temperature, "schedule/lr": lr}
        if self.accelerator.scaler is not None:
            values["schedule/loss_scale"] = self.accelerator.scaler.get_scale()
        self.scalars(step, values)
        self._since = time.perf_counter(), step

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name."""
        with self._writing():
            self.accelerator.log(dict(values), step=step)

    @torch.no_grad()
    def pictures(self, step: int, model: PrunedViT, images: Sequence[Tensor]) -> None:
        """Show which tokens of some images ``(3, H, W)``, or samples ``(M, 3, H, W)``, the model keeps."""
        batch = torch.stack(list(images)).to(self.accelerator.device)
        _, trace = model(batch, return_trace=True, **model.unknown_cameras(len(images)))
        mean, std = self.preprocessing["mean"], self.preprocessing["std"]
        pixels = [to_pixels(image, mean, std) for image in batch.flatten(0, -4)]
        picture = trace_grid(pixels, trace, model.adapter.grid_size)
        with self._writing():
            for tracker in self.accelerator.trackers:
                if tracker.name in _PICTURES:
                    tracker.log_images({"kept_tokens": np.asarray(picture)[None]}, step, **_PICTURES[tracker.name])

    def close(self) -> None:
        """End what trackers have begun, where a training breaks off."""
        for tracker in self.accelerator.trackers:
            with self._writing():
                tracker.finish()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Go on without a log where it cannot be written; what matters is saved elsewhere."""
        try:
            yield
        except Exception as error:  # trackers have types of their own for a lost connection
            warnings.warn(f"the log could not be written: {type(error).__name__}: {error}", stacklevel=4)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
