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
from dynavit.deployment.deployed import Deployed, Truncated
from dynavit.deployment.formats import FORMATS
from dynavit.deployment.inputs import repeated
from dynavit.deployment.target import Target
from dynavit.tables import Row

_BATCH_SIZES = (1, 8)


@torch.inference_mode()
def time_exported(
    dense: Deployed,
    exported: Callable[[Tensor], Any],
    images: Tensor,
    target: Target,
    calibration: list[Tensor],
    rounds: int,
    truncated: Truncated | None = None,
) -> list[Row]:
    """Time a file in turns with two of the dense model: exported likewise, and in torch as it is, in fp32.

    Args:
        dense: the dense model.
        exported: the file, as a function.
        images: ``(M, 3, H, W)``.
        target: what the file is; others are written likewise and thrown away.
        calibration: batches of images, for int8.
        rounds: how often.
        truncated: the bound to compare with, exported likewise, too; none if None.

    Returns:
        A row for each batch size: ``batch_size``; ``ms``, ``dense_ms`` and ``torch_ms`` an image; ``speedup`` over the
        dense model in this runtime and ``over_torch`` over it in torch, as [median, low, high] of a 95 % interval; and
        ``share``, likewise, the time of the bound over that of the file.
    """
    chosen, rows = FORMATS[target.format], list[Row]()
    written = {"dense": dense} | ({} if truncated is None else {"oracle": truncated})
    functions: dict[str, Callable[[Tensor], Any]] = {"pruned": exported, "torch": dense}
    with TemporaryDirectory() as elsewhere:
        for name, module in written.items():
            path = Path(elsewhere) / f"{name}{chosen.suffix}"
            write(module, path, images, {}, target, calibration=calibration)
            functions[name] = chosen.open(path)
        for size in _BATCH_SIZES if target.batch is None else (target.batch,):
            some = repeated(images, size)
            calls = {name: partial(call, some) for name, call in functions.items()}
            seconds = measure(calls, rounds=rounds, min_seconds=0.05)
            row: Row = {
                "batch_size": size,
                "ms": 1e3 * median(seconds["pruned"]) / size,
                "dense_ms": 1e3 * median(seconds["dense"]) / size,
                "torch_ms": 1e3 * median(seconds["torch"]) / size,
                "speedup": list(median_interval(seconds["dense"], seconds["pruned"])),
                "over_torch": list(median_interval(seconds["torch"], seconds["pruned"])),
            }
            if truncated is not None:
                row["share"] = list(median_interval(seconds["oracle"], seconds["pruned"]))
            rows.append(row)
    return rows
