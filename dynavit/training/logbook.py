"""What a run writes for TensorBoard."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dynavit.data.transforms import to_pixels
from dynavit.models import PrunedViT
from dynavit.report.tokens import trace_grid


class Logbook:
    """Scalars and pictures, by optimiser step, in the run's own folder.

    Args:
        accelerator: of the run; its project folder receives the events.
        step: where the run stands; what an interrupted one wrote beyond it is hidden.
        preprocessing: the model's, to show images as they looked.
    """

    def __init__(self, accelerator: Accelerator, step: int, preprocessing: Mapping[str, Any]) -> None:
        self.accelerator = accelerator
        self.preprocessing = preprocessing
        accelerator.init_trackers("", init_kwargs={"tensorboard": {"purge_step": step + 1}})
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
        tensor = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        writer = self.accelerator.get_tracker("tensorboard", unwrap=True)
        with self._writing():
            writer.add_image("kept_tokens", tensor.reshape(picture.height, picture.width, 3), step, dataformats="HWC")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Go on without a log where it cannot be written; what matters is saved elsewhere."""
        try:
            yield
        except OSError as error:
            warnings.warn(f"the TensorBoard log could not be written: {error}", stacklevel=4)
