"""The loss that pulls selectors with an expected count to the wanted number of tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from dynavit.cost.latency import block_latency
from dynavit.errors import InputError
from dynavit.files import write_text
from dynavit.losses import keep_ratio_loss, latency_loss
from dynavit.models import PrunedViT, Trace
from dynavit.models.trace import StageChoice


class CountLoss:
    """Compares what a forward kept, or is expected to keep, with the counts that were wanted.

    What was kept is told in original patches: tokens that a reducer made of others are left out.

    Args:
        kind: ``"probabilities"``, ``"decisions"`` or ``"latency"``.
        table: ``(N + 1,)`` time of a block by its number of tokens, for ``"latency"``.
    """

    def __init__(self, kind: str, table: Tensor | None = None) -> None:
        self.kind = kind
        self.table = table

    def __call__(self, trace: Trace, counts: Sequence[int | Tensor]) -> Tensor:
        """Return the unweighted loss of one forward.

        Args:
            trace: of the forward.
            counts: tokens wanted after each stage, as evaluation keeps them.
        """
        num_patches = trace.source.shape[1]
        if self.kind == "latency":
            assert self.table is not None
            probs = [_on_patches(choice, num_patches) for choice in trace.choices]
            return latency_loss(probs, counts, self.table)
        found = [choice.decided if self.kind == "decisions" else choice.expected for choice in trace.choices]
        return keep_ratio_loss(found, [count / num_patches for count in counts])


def _on_patches(choice: StageChoice, num_patches: int) -> Tensor:
    """Return the probabilities of a stage by original patch, ``(B, N)``: 0 for those gone before."""
    place = torch.where(choice.positions < 0, num_patches, choice.positions)  # made tokens are no patches
    probs = choice.probs.new_zeros(len(place), num_patches + 1).scatter(1, place, choice.probs)
    return probs[:, :num_patches]


def measured_table(model: PrunedViT, path: Path, batch_size: int, accelerator: Accelerator) -> Tensor:
    """Return the time of a block by its number of tokens: measured once a run, then read from ``path``.

    Raises:
        InputError: the file does not fit the model.
    """
    rows, columns = model.adapter.grid_size
    values: Any = None
    if accelerator.is_main_process:  # which alone sees the file where machines share none
        if not path.exists():
            table = block_latency(model, None, batch_size, rounds=5)
            write_text(path, json.dumps({"seconds_per_image": table.tolist(), "batch_size": batch_size}))
        values = _read_times(path)
    (values,) = broadcast_object_list([values])
    if len(values) != rows * columns + 1:
        raise InputError(
            f"{path} has the times of {len(values) - 1} tokens, the model has {rows * columns}: remove the file."
        )
    return torch.tensor(values)


def _read_times(path: Path) -> list[float]:
    try:
        times = json.loads(path.read_text())["seconds_per_image"]
        if not all(isinstance(time, float) and 0 <= time < math.inf for time in times):
            raise ValueError("times are numbers, not negative")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} holds no times of blocks ({error!r}): remove the file.") from None
    return list(times)
