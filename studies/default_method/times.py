"""How fast what a part compares is, on this machine while it does nothing else."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dynavit.cost.machine import machine
from dynavit.cost.timing import measure, median_interval
from dynavit.errors import InputError
from dynavit.evaluation.equal_macs import largest_keep_ratio, plain_dropping_macs
from dynavit.models import PrunedViT
from dynavit.report.table import Column, markdown
from studies.default_method.experiment import DENSE, Cell, build
from studies.default_method.parts import Part

BATCH = 8
ROUNDS = 15


def measure_times(part: Part, dense: PrunedViT, path: Path) -> str:
    """Time every method at every budget, and dense models at every size, in turns; write seconds and return a table.

    Smaller images are timed at their size, as a user would store them: making them small is not counted.
    """
    calls, device = {}, next(dense.parameters()).device
    for size in sorted({part.size, *part.dense}, reverse=True):
        model, _ = build(dense, Cell(DENSE, 1.0, size, 0))
        calls[f"{DENSE} at {size} px"] = partial(model.eval(), torch.randn(BATCH, 3, size, size, device=device))
    images = torch.randn(BATCH, 3, part.size, part.size, device=device)
    for name in part.names:
        for budget in part.evaluated:
            model, _ = build(dense, Cell(name, part.budgets[0], part.size, 0))
            with suppress(InputError):  # out of reach of this method
                model.set_keep_ratio(largest_keep_ratio(model, plain_dropping_macs(dense, budget)))
                calls[f"{name} at {budget:g}"] = partial(model.eval(), images)
    with torch.inference_mode():
        seconds = measure(calls, ROUNDS)
    found = {"machine": machine(device), "batch": BATCH, "seconds": seconds}
    path.write_text(json.dumps(found, indent=1) + "\n")
    return speed_table(found)


def speed_table(found: dict[str, Any]) -> str:
    """Return Markdown of what :func:`measure_times` wrote; the first row is what the others are compared with."""
    seconds = found["seconds"]
    first = next(iter(seconds.values()))
    ratios = [median_interval(first, times) for times in seconds.values()]
    return markdown(
        [
            Column("model", list(seconds), left=True),
            Column("speedup", [f"{middle:.2f}x" for middle, _, _ in ratios]),
            Column("95 % interval", [f"{low:.2f}x to {high:.2f}x" for _, low, high in ratios]),
        ]
    )
