"""Exporting a run, checked on its own data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dynavit.cost.timing import measure, median_interval
from dynavit.data.reid import ReidData
from dynavit.deployment.checked import write, write_checked
from dynavit.deployment.deployed import Deployed
from dynavit.deployment.formats import FORMATS
from dynavit.deployment.verify import Verification, clear_choices
from dynavit.errors import InputError
from dynavit.models import PrunedViT
from dynavit.runs.loading import first_images
from dynavit.runs.open import Run, list_images, read_images
from dynavit.tables import Row
from dynavit.tasks import create_task
from dynavit.tasks.reid import Searchable

_IMAGES = 32
_TIMED = (1, 8)  # batch sizes
_QUERIES, _SEARCHED = 100, 1000


@dataclass(frozen=True)
class Exported:
    """A model written as a file.

    Attributes:
        path: the file.
        runtime: what ran it, to check it.
        keep_ratios: of its stages; none if it is dense.
        batch: the only batch size that it takes; None if any.
        without_thresholds: the model's were left out, because one graph has one number of tokens.
        classifies: it gives logits, and not an embedding.
        verification: what was compared with the original.
        speeds: rows of ``batch_size``, ``dense_ms`` and ``ms`` an image, and ``speedup`` as [median, low, high] of a
            95 % interval, in that runtime, in turns; empty where nothing is pruned or no speed was measured.
        search: for re-identification with the run's data, what a search by the exported model's embeddings gives
            beside one by the original's; else None.
    """

    path: Path
    runtime: str
    keep_ratios: tuple[float, ...]
    batch: int | None
    without_thresholds: bool
    classifies: bool
    verification: Verification
    speeds: list[Row]
    search: str | None


def export_run(
    run: Run,
    output: Path,
    images: str | None = None,
    *,
    kind: str = "onnx",
    batch: int | None = None,
    with_tokens: bool = False,
    rounds: int = 15,
) -> Exported:
    """Write a run's model, at its present keep ratio, as a file; thresholds are left out.

    Args:
        run: opened on the CPU.
        output: file to write; its folder is made if missing.
        images: folder of images to check with; the run's validation data if None.
        kind: one of :data:`~dynavit.deployment.formats.FORMATS`.
        batch: the file takes batches of this size alone; of any size if None.
        with_tokens: the file also gives the patches kept by each stage.
        rounds: how often it is timed beside the dense model, exported likewise; 0 measures no speed.

    Raises:
        InputError: nothing to check with, a missing package, or an exported model that differs.
    """
    without_thresholds = run.model.thresholds is not None
    if without_thresholds:  # one graph has one number of tokens
        static = copy(run.model)
        static.set_thresholds(None)
        run = replace(run, model=static)
    sample, data = _sample(run, images)
    metadata = {
        "preprocessing": run.preprocessing,
        "class_names": list(run.class_names),
        "keep_ratios": list(run.model.keep_ratios),
        "architecture": run.model.architecture,
    }
    if run.is_reid:
        del metadata["class_names"]  # of the training identities, which the embedding does not tell
    verification = write_checked(
        run.model,
        output,
        sample,
        metadata,
        kind=kind,
        batch=batch,
        with_tokens=with_tokens,
        answer="embedding" if run.is_reid else "logits",
        classifies=not run.is_reid,
        clear=clear_choices(run.model, sample),
    )
    exported = FORMATS[kind].open(output)
    try:
        search = _compare_searches(run, lambda some: exported(some)[0], data) if isinstance(data, ReidData) else None
    except InputError:
        output.unlink()
        raise
    speeds = _speeds(run.model, exported, sample, kind, batch, rounds) if rounds and _prunes(run.model) else []
    return Exported(
        output,
        FORMATS[kind].runtime,
        run.model.keep_ratios,
        batch,
        without_thresholds,
        not run.is_reid,
        verification,
        speeds,
        search,
    )


def _sample(run: Run, images: str | None) -> tuple[Tensor, Any]:
    """Return images to check with, and the data that they are of; None where a folder is given."""
    if images is not None:
        batches = list(read_images(run, list_images(images)[:_IMAGES], _IMAGES))
        for problem in (problem for _, _, problems in batches for problem in problems):
            warnings.warn(problem, stacklevel=2)
        return torch.cat([batch for _, batch, _ in batches]), None
    if run.config is None:
        raise InputError(
            f"{run.path} has no config.yaml that names data to check with: pass --images DIR, or data.root=IMAGES."
        )
    data = create_task(run.config).open_data(run.preprocessing, train=False)
    return torch.stack(first_images(data.validation, _IMAGES)), data


def _prunes(model: PrunedViT) -> bool:
    return any(ratio < 1 for ratio in model.keep_ratios)


@torch.inference_mode()
def _speeds(
    model: PrunedViT,
    exported: Callable[[Tensor], object],
    images: Tensor,
    kind: str,
    batch: int | None,
    rounds: int,
) -> list[Row]:
    """Time the exported model in turns with the dense one, which is exported to a file that is thrown away."""
    rows: list[Row] = []
    with TemporaryDirectory() as elsewhere:
        path = Path(elsewhere) / f"dense{FORMATS[kind].suffix}"
        write(Deployed(model.at_ratio(1.0)), path, images, {}, kind, batch)
        dense = FORMATS[kind].open(path)
        for size in _TIMED if batch is None else (batch,):
            some = images[torch.arange(size) % len(images)]
            calls: dict[str, Callable[[], object]] = {"dense": partial(dense, some), "pruned": partial(exported, some)}
            seconds = measure(calls, rounds=rounds, min_seconds=0.05)
            rows.append(
                {
                    "batch_size": size,
                    "dense_ms": 1e3 * median(seconds["dense"]) / size,
                    "ms": 1e3 * median(seconds["pruned"]) / size,
                    "speedup": list(median_interval(seconds["dense"], seconds["pruned"])),
                }
            )
    return rows


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
