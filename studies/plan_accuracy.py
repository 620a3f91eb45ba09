"""How far ``tools/plan.py`` is off: what it foretells of random stages and keep ratios, beside what they take.

The parts of the model, from which it foretells, and the whole models are timed in the same rounds: a machine that
others use is faster or slower a minute later.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dynavit.cost.images import random_images
from dynavit.cost.machine import machine
from dynavit.cost.timing import measure, median_interval
from dynavit.evaluation.methods import read_methods
from dynavit.evaluation.part_costs import Parts
from dynavit.models import PrunedViT, create_model, prune
from dynavit.report.table import Column, markdown
from dynavit.tables import Row

CONFIGURATIONS, ROUNDS = 20, 15
WITHIN = 0.07  # of what was measured
_LEAST, _MOST = 0.2, 0.95  # share of the patches that a stage keeps
_STAGES = 4  # at most


def compare_with_plan(backbone: str, batch_sizes: Sequence[int], folder: Path, device: torch.device) -> str:
    """Foretell and time :data:`CONFIGURATIONS` models at each batch size; return tables.

    Args:
        backbone: timm name; weights are random.
        batch_sizes: images at once.
        folder: gets ``plan.json``, every round.
        device: where they run.
    """
    dense = create_model(backbone, stages=()).to(device).eval()
    (method,) = read_methods(["methods/default"])
    drawn = random_configurations(dense.adapter.depth, seed=0)
    models = [
        prune(dense.backbone, **method.parts, stages=tuple(kept), keep_ratios=[*kept.values()]).eval() for kept in drawn
    ]
    found = {size: _compare(dense, method.parts, models, size) for size in batch_sizes}
    (folder / "plan.json").write_text(json.dumps({"machine": machine(device), "rows": found}, indent=1) + "\n")
    return "\n".join(table(size, rows) for size, rows in found.items()) + f"\n{machine(device)}.\n"


def random_configurations(depth: int, seed: int) -> list[dict[int, float]]:
    """Return the share of all patches that each stage keeps, by block, of every configuration."""
    draw = random.Random(seed)
    drawn = []
    for _ in range(CONFIGURATIONS):
        stages = sorted(draw.sample(range(depth), draw.randint(1, min(_STAGES, depth))))
        ratios = sorted((round(draw.uniform(_LEAST, _MOST), 3) for _ in stages), reverse=True)
        drawn.append(dict(zip(stages, ratios, strict=True)))
    return drawn


@torch.inference_mode()
def _compare(dense: PrunedViT, pruning: dict[str, Any], models: Sequence[PrunedViT], batch_size: int) -> list[Row]:
    """Return a row of the dense model, then one of each of the others."""
    parts, images = Parts.of(dense, pruning, batch_size), random_images(dense, batch_size)
    names = {f"model {number}": model for number, model in enumerate([dense, *models])}
    calls: dict[str, Callable[[], object]] = {name: partial(model, images) for name, model in names.items()}
    seconds = measure(calls | parts.calls(), ROUNDS)
    costs = parts.costs(seconds)
    foretold = {name: costs.predict(model) for name, model in names.items()}
    whole = next(iter(names))
    rows: list[Row] = [
        {
            "stages": list(model.stages),
            "keep_ratios": [round(ratio, 3) for ratio in model.keep_ratios],
            "foretold_ms": 1e3 * foretold[name] / batch_size,
            "ms": 1e3 * median(seconds[name]) / batch_size,
            "foretold_speedup": foretold[whole] / foretold[name],
            "speedup": list(median_interval(seconds[whole], seconds[name])),
            "seconds": seconds[name],
        }
        for name, model in names.items()
    ]
    rows[0]["costs"] = asdict(costs)
    return rows


def table(batch_size: int, rows: Sequence[Row]) -> str:
    """Return Markdown: the configurations, the best foretold first, and how many are foretold within :data:`WITHIN`."""
    dense, *pruned = rows
    pruned = sorted(pruned, key=lambda row: abs(_off(row)))
    columns = [
        Column("stages", [", ".join(map(str, row["stages"])) for row in pruned], left=True),
        Column("kept", [", ".join(f"{ratio:.2f}" for ratio in row["keep_ratios"]) for row in pruned], left=True),
        Column("foretold ms", [f"{row['foretold_ms']:.1f}" for row in pruned]),
        Column("ms", [f"{row['ms']:.1f}" for row in pruned]),
        Column("off by", [f"{100 * _off(row):+.1f} %" for row in pruned]),
        Column("foretold speedup", [f"{row['foretold_speedup']:.2f}x" for row in pruned]),
        Column("speedup", ["{:.2f}x [{:.2f}, {:.2f}]".format(*row["speedup"]) for row in pruned]),
    ]
    near = sum(abs(_off(row)) <= WITHIN for row in pruned)
    gains = [abs(row["foretold_speedup"] / row["speedup"][0] - 1) for row in pruned]
    return (
        f"Batch size {batch_size}: of {len(pruned)}, {near} foretold within {100 * WITHIN:g} % of what was measured, "
        f"the median {100 * median(abs(_off(row)) for row in pruned):.1f} % off, the dense model "
        f"{100 * _off(dense):+.1f} %; speedups at most {100 * max(gains):.1f} % off.\n\n{markdown(columns)}"
    )


def _off(row: Row) -> float:
    return row["foretold_ms"] / row["ms"] - 1
