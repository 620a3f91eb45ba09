"""How long it takes to get a pruned model of a given accuracy: by dense fine-tuning, masks, probes, or scores alone.

All start from the dense model of the quickstart and take as many steps. Accuracy is that of the pruned model, looked at
every so many steps; time is that of their steps, measured in turns on a machine that does nothing else, so that neither
validation nor the drawing of images is counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dynavit
from dynavit.commands.settings import as_words
from dynavit.config import load_config
from dynavit.cost.machine import machine
from dynavit.cost.timing import measure, median_interval
from dynavit.evaluation.sweep import evaluate_variants, gathering_accelerator
from dynavit.evaluation.variants import Variant
from dynavit.models import prune
from dynavit.report.table import Column, markdown
from dynavit.runs.open import open_run
from dynavit.tasks import create_task
from dynavit.training.monitor import MetricsFile
from dynavit.training.optimization import clip_by_part, set_learning_rates
from dynavit.training.setup import Setup, create_accelerator, create_setup
from studies.runner import run_all

STEPS, LOOKS = 400, 10  # optimiser steps, and how often the accuracy is looked at
ROUNDS = 15
_LEARNED, _DEFAULT = "quickstart/learned", "quickstart/classify"

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense fine-tuning, merging afterwards": (
        _DEFAULT,
        {"model.stages": [], "loss.token_distillation_weight": 0, "loss.logit_distillation_weight": 0},
    ),
    "masks": (_LEARNED, {"model.execution": "mask"}),
    "probes": (_LEARNED, {"model.execution": "gather"}),
    "probes, backbone frozen": (_LEARNED, {"model.execution": "gather", "train.freeze": "backbone"}),
    "merging by distinctness (the default)": (_DEFAULT, {"model.execution": "gather"}),
}
"""A shipped configuration, and what differs from it; the first way learns nothing of pruning."""


def compare_ways(
    ratio: float, targets: Sequence[float], seeds: Sequence[int], folder: Path, workers: int | None = None
) -> str:
    """Train what ``folder`` does not hold yet, and return a table, with what :func:`measure_steps` wrote there.

    Args:
        ratio: keep ratio to train for.
        targets: accuracies in percent, to be reached.
        seeds: of everything drawn.
        folder: gets a folder for each training.
        workers: processes; one a CPU core if None.
    """
    curves = run_all(partial(train, ratio, folder), list(WAYS), seeds, workers)
    path = folder / "times.json"
    return table(curves, targets, json.loads(path.read_text()) if path.exists() else None)


def train(ratio: float, folder: Path, way: str, seed: int) -> list[float]:
    """Train, or take what was trained, and return the pruned model's top-1 at every look; of the first way, at the end.

    Args:
        ratio, folder: as for :func:`compare_ways`.
        way: of :data:`WAYS`.
        seed: of everything drawn.
    """
    config, settings = WAYS[way]
    path = folder / f"{list(WAYS).index(way)}-{ratio:g}-{seed}"
    settings = {**settings, "train.epochs": LOOKS, "train.steps_per_epoch": STEPS // LOOKS, "seed": seed}
    settings |= {"model.keep_ratio": ratio, "output_dir": str(path)}
    dynavit.train(config, settings, resume=True)
    if settings.get("model.stages") != []:
        return [row["val/top1"] for row in MetricsFile(path / "metrics.jsonl").rows()]
    return [prune_and_judge(path, ratio)]


def prune_and_judge(path: Path, ratio: float) -> float:
    """Return the top-1 of a dense run, pruned by the default method without training for it."""
    run = open_run(path, device="cpu")
    assert run.config is not None
    task = create_task(run.config)
    data = task.open_data(run.preprocessing, train=False, augment=False, class_names=run.class_names)
    variants = [Variant("pruned", ratio, prune(run.model, keep_ratio=ratio).eval())]
    (found,) = evaluate_variants(variants, task, data, run.config.data.batch_size, gathering_accelerator(run.device))
    assert found is not None
    return found.metrics["top1"]


def measure_steps(ratio: float, folder: Path) -> None:
    """Time a training step of every way, in turns, and write seconds to ``folder``."""
    calls = {}
    for way, (name, settings) in WAYS.items():
        config = load_config(name, as_words({**settings, "model.keep_ratio": ratio, "data.workers": 0}))
        setup = create_setup(config, create_accelerator(config))
        setup.model.train()
        set_learning_rates(setup.optimizer, 0.0)  # every step is like the first
        batch = next(iter(setup.batches.epoch(0, 0)))
        calls[way] = partial(step, setup, batch)
    found = {"machine": machine("cpu"), "seconds": measure(calls, ROUNDS)}
    (folder / "times.json").write_text(json.dumps(found, indent=1) + "\n")


def step(setup: Setup, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """Take one optimiser step."""
    images, labels, indices = batch
    losses, _ = setup.objective(setup.model, images, labels, indices, setup.schedules.at(0, images.device))
    losses["loss"].backward()
    clip_by_part(setup.optimizer, 1.0)
    setup.optimizer.step()
    setup.optimizer.zero_grad()


def table(curves: dict[str, list[list[float]]], targets: Sequence[float], times: dict[str, Any] | None) -> str:
    """Return Markdown: accuracy at the end, time of a step, and time to each target, by way; means over seeds."""
    means = {way: np.mean(runs, axis=0) for way, runs in curves.items()}
    columns = [
        Column("training", list(means), left=True),
        Column("top-1 at the end", [f"{mean[-1]:.2f}" for mean in means.values()]),
        Column(
            "seeds", [f"{min(r[-1] for r in runs):.2f} to {max(r[-1] for r in runs):.2f}" for runs in curves.values()]
        ),
    ]
    if times is None:
        return markdown(columns)
    seconds = times["seconds"]
    dense = seconds[next(iter(WAYS))]
    against = [median_interval(seconds[way], dense) for way in means]
    columns.append(Column("a step", [f"{middle:.2f}x [{low:.2f}, {high:.2f}]" for middle, low, high in against]))
    for target in targets:
        cells = []
        for way, mean in means.items():
            first = next((number for number, value in enumerate(mean, start=1) if value >= target), None)
            steps = None if first is None else first * STEPS // len(mean)
            each = float(np.median(seconds[way]))
            cells.append("never" if steps is None else f"{steps * each:.0f} s ({steps} steps)")
        columns.append(Column(f"to {target:g} %", cells))
    return f"{markdown(columns)}\nStep times are shares of the dense one. {times['machine']}.\n"
