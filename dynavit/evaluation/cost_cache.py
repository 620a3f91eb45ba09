"""Keeping what was measured on a machine, so that the same question is answered at once the next time."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dynavit.cost.machine import machine
from dynavit.evaluation.part_costs import Costs, measure_costs
from dynavit.files import write_text
from dynavit.models import PrunedViT
from dynavit.version import __version__


def cached_costs(dense: PrunedViT, pruning: dict[str, Any], batch_size: int, fresh: bool = False) -> Costs:
    """Return the costs of a model's parts on its device, measured unless they are known.

    They are kept in ``dynavit/costs`` in the user's cache folder (``XDG_CACHE_HOME``, or ``~/.cache``), by version,
    machine, shapes of the model, image size, batch size and precision.

    Args:
        dense, pruning, batch_size: as for :func:`~dynavit.evaluation.part_costs.measure_costs`.
        fresh: measure again.
    """
    weights = [(name, list(weight.shape), str(weight.dtype)) for name, weight in dense.named_parameters()]
    device = next(dense.parameters()).device
    about = [__version__, machine(device), os.cpu_count(), weights, dense.adapter.image_size, pruning, batch_size]
    digest = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynavit" / "costs"
    file = folder / f"{digest}.json"
    if not fresh and (known := _read(file)) is not None:
        return known
    costs = measure_costs(dense, pruning, batch_size)
    write_text(file, json.dumps({"machine": machine(device), **asdict(costs)}) + "\n")
    return costs


def _read(file: Path) -> Costs | None:
    """Return what a file holds; None if there is none, or what is there cannot be used: it is measured again."""
    try:
        found = json.loads(file.read_text())
        return Costs(
            [float(seconds) for seconds in found["blocks"]],
            [(int(patches), float(seconds)) for patches, seconds in found["stage"]],
            float(found["rest"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
