"""Exporting a run, checked on its own data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dynavit.data.reid import ReidData
from dynavit.deployment.onnx import export_onnx, open_onnx
from dynavit.deployment.verify import Verification, clear_choices
from dynavit.errors import InputError
from dynavit.runs.loading import first_images
from dynavit.runs.open import Run, list_images, read_images
from dynavit.tasks import create_task
from dynavit.tasks.reid import Searchable

_IMAGES = 32
_QUERIES, _SEARCHED = 100, 1000


@dataclass(frozen=True)
class Exported:
    """A model written as ONNX.

    Attributes:
        path: the file.
        keep_ratios: of its stages; none if it is dense.
        without_thresholds: the model's were left out, because one graph has one number of tokens.
        classifies: it gives logits, and not an embedding.
        verification: what was compared with the original.
        search: for re-identification with the run's data, what a search by the exported model's embeddings gives
            beside one by the original's; else None.
    """

    path: Path
    keep_ratios: tuple[float, ...]
    without_thresholds: bool
    classifies: bool
    verification: Verification
    search: str | None


def export_run(run: Run, output: Path, images: str | None = None) -> Exported:
    """Write a run's model, at its present keep ratio, as ONNX; thresholds are left out.

    Args:
        run: opened on the CPU.
        output: file to write; its folder is made if missing.
        images: folder of images to check with; the run's validation data if None.

    Raises:
        InputError: nothing to check with, a missing package, or an exported model that differs.
    """
    without_thresholds = run.model.thresholds is not None
    if without_thresholds:  # one graph has one number of tokens
        static = copy(run.model)
        static.set_thresholds(None)
        run = replace(run, model=static)
    data = None
    if images is not None:
        batches = list(read_images(run, list_images(images)[:_IMAGES], _IMAGES))
        for problem in (problem for _, _, problems in batches for problem in problems):
            warnings.warn(problem, stacklevel=2)
        sample = torch.cat([batch for _, batch, _ in batches])
    elif run.config is not None:
        data = create_task(run.config).open_data(run.preprocessing, train=False)
        sample = torch.stack(first_images(data.validation, _IMAGES))
    else:
        raise InputError(
            f"{run.path} has no config.yaml that names data to check with: pass --images DIR, or data.root=IMAGES."
        )
    metadata = {
        "preprocessing": run.preprocessing,
        "class_names": list(run.class_names),
        "keep_ratios": list(run.model.keep_ratios),
        "architecture": run.model.architecture,
    }
    if run.is_reid:
        del metadata["class_names"]  # of the training identities, which the embedding does not tell
    model = run.model if run.model.side is None else _WithoutCameras(run)
    name = "embedding" if run.is_reid else "logits"
    clear = clear_choices(run.model, sample)
    verification = export_onnx(model, output, sample, metadata, output=name, classifies=not run.is_reid, clear=clear)
    try:
        search = _compare_searches(run, open_onnx(output, name), data) if isinstance(data, ReidData) else None
    except InputError:
        output.unlink()
        raise
    return Exported(output, run.model.keep_ratios, without_thresholds, not run.is_reid, verification, search)


class _WithoutCameras(nn.Module):
    """A model with a camera embedding, told that every camera is unknown."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model = run.model

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.model(images, **self.model.unknown_cameras(images.shape[0]))
        return embedding


@torch.inference_mode()
def _compare_searches(run: Run, exported: Callable[[Tensor], Tensor], data: ReidData) -> str:
    """Search part of the data with both models; the metrics have to be the same.

    Raises:
        InputError: they are not.
    """
    queries = [index for index in range(data.num_query) if data.has_match[index]][:_QUERIES]
    wanted = set(data.identities[queries].tolist())
    gallery = [index for index in range(data.num_query, len(data.identities)) if int(data.identities[index]) in wanted][
        :_SEARCHED
    ]
    samples = [(index, data.validation[index]) for index in [*queries, *gallery]]
    readable = [(index, sample[0]) for index, sample in samples if sample is not None]
    indices = torch.tensor([index for index, _ in readable])
    batches = torch.stack([image for _, image in readable]).split(_IMAGES)
    summaries = [
        Searchable(torch.cat([answer(batch) for batch in batches]), indices, data).search().summary()
        for answer in (run.answer, exported)
    ]
    original, onnx = (f"mAP {values['map']:.2f} %, rank-1 {values['rank1']:.2f} %" for values in summaries)
    tolerance = 0.05 + 100 / len(queries)  # two images at equal distance may change places
    if any(abs(value - summaries[1][name]) > tolerance for name, value in summaries[0].items()):
        raise InputError(
            f"searching with the exported model gives {onnx}, with the original {original}: please report this with "
            f"the versions of torch, onnx and onnxruntime."
        )
    cameras = ", told no cameras" if run.model.side is not None else ""
    return (
        f"{onnx} on {len(queries)} queries and {len(gallery)} gallery images{cameras} (a part of the data: at most "
        f"{_QUERIES} queries and {_SEARCHED:,} images of their identities, so it is not what evaluate finds on all); "
        f"the original: {original}."
    )
