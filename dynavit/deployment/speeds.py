"""How fast a file is in its runtime."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dynavit.cost.timing import measure, median_interval
from dynavit.deployment.checked import write
from dynavit.deployment.deployed import Deployed
from dynavit.deployment.formats import FORMATS
from dynavit.deployment.target import Target
from dynavit.tables import Row

_BATCH_SIZES = (1, 8)


@torch.inference_mode()
def time_exported(
    in_torch: Deployed,
    exported: Callable[[Tensor], Any],
    images: Tensor,
    target: Target,
    calibration: list[Tensor],
    rounds: int,
) -> list[Row]:
    """Time a file in turns with two of the dense model: exported likewise, and in torch as it is, in fp32.

    Args:
        in_torch: the dense model.
        exported: the file, as a function.
        images: ``(M, 3, H, W)``.
        target: what the file is; the dense model's is thrown away.
        calibration: batches of images, for int8.
        rounds: how often.

    Returns:
        A row for each batch size: ``batch_size``; ``ms``, ``dense_ms`` and ``torch_ms`` an image; ``speedup`` over the
        dense model in this runtime and ``over_torch`` over it in torch, as [median, low, high] of a 95 % interval.
    """
    rows: list[Row] = []
    with TemporaryDirectory() as elsewhere:
        path = Path(elsewhere) / f"dense{FORMATS[target.format].suffix}"
        write(in_torch, path, images, {}, target, calibration=calibration)
        dense = FORMATS[target.format].open(path)
        for size in _BATCH_SIZES if target.batch is None else (target.batch,):
            some = images[torch.arange(size) % len(images)]
            functions: dict[str, Callable[[Tensor], Any]] = {"dense": dense, "pruned": exported, "torch": in_torch}
            calls = {name: partial(call, some) for name, call in functions.items()}
            seconds = measure(calls, rounds=rounds, min_seconds=0.05)
            rows.append(
                {
                    "batch_size": size,
                    "ms": 1e3 * median(seconds["pruned"]) / size,
                    "dense_ms": 1e3 * median(seconds["dense"]) / size,
                    "torch_ms": 1e3 * median(seconds["torch"]) / size,
                    "speedup": list(median_interval(seconds["dense"], seconds["pruned"])),
                    "over_torch": list(median_interval(seconds["torch"], seconds["pruned"])),
                }
            )
    return rows
