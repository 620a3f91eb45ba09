"""Exporting a run, checked on its own data."""

from __future__ import annotations

from pathlib import Path

import torch

from dynavit.engine.build import build_data
from dynavit.engine.loading import first_images
from dynavit.engine.run import Run, list_images, read_images
from dynavit.errors import InputError
from dynavit.export import Verification, export_onnx

_IMAGES = 32


def export_run(run: Run, output: Path, images: str | None = None) -> Verification:
    """Write a run's model, at its present keep ratio, as ONNX.

    Args:
        run: opened on the CPU.
        output: file to write; its folder is made if missing.
        images: folder of images to check with; the run's validation data if None.

    Raises:
        InputError: nothing to check with, a missing package, or an exported model that differs.
    """
    if images is not None:
        batches = read_images(run, list_images(images)[:_IMAGES], _IMAGES)
        sample = torch.cat([batch for _, batch, _ in batches])
    elif run.config is not None:
        data = build_data(run.config.data, run.preprocessing, run.config.seed, train=False)
        sample = torch.stack(first_images(data.validation, _IMAGES))
    else:
        raise InputError(f"{run.path} has no config.yaml that names data to check with: pass --images DIR.")
    if len(sample) < 5:
        sample = sample[torch.arange(5) % len(sample)]
    output.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "preprocessing": run.preprocessing,
        "class_names": list(run.class_names),
        "keep_ratios": list(run.model.keep_ratios),
        "architecture": run.model.architecture,
    }
    return export_onnx(run.model, output, sample, metadata)
