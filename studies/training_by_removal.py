"""Does a scorer learn as well by probes as by masks? Both quickstarts, trained alike but for the execution.

Runs are folders of the library's own trainings, so that what was stopped goes on, and what is there is not run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dynavit
from dynavit.commands.settings import as_words
from dynavit.evaluation.sweep import evaluate_variants, gathering_accelerator
from dynavit.evaluation.variants import Variant
from dynavit.metrics import paired_bootstrap
from dynavit.report.table import Column, markdown
from dynavit.runs.open import open_run
from dynavit.tasks import create_task
from studies.runner import run_all

EXECUTIONS = {"masks": "mask", "probes": "gather"}


@dataclass(frozen=True)
class Quickstart:
    """What is trained, and on what it is judged.

    Attributes:
        config: name of a shipped configuration whose scorer learns by masks.
        test: settings of the data it is judged on.
        metric: name of the mean of the values.
        tolerated: points that probes may lose.
    """

    config: str
    test: dict[str, Any]
    metric: str
    tolerated: float


PROBLEMS = {
    "quickstart": Quickstart(
        "quickstart/learned", {"data.options": {"validation_size": 20_000}, "data.batch_size": 250}, "top-1", 0.3
    ),
    "quickstart-reid": Quickstart("quickstart/reid_learned", {}, "mAP", 1.5),
}


@dataclass(frozen=True)
class Judged:
    """What a trained model gets right.

    Attributes:
        values: ``(V,)`` in percent, one an image or query.
        groups: ``(V,)``, of what is easy or hard together.
    """

    values: NDArray[np.float64]
    groups: NDArray[np.int64]


def compare_executions(
    problem: str, ratios: Sequence[float], seeds: Sequence[int], folder: Path, workers: int | None = None
) -> str:
    """Train by masks and by probes what ``folder`` does not hold yet, and return a table of the differences.

    Args:
        problem: of :data:`PROBLEMS`.
        ratios: keep ratios to train at.
        seeds: of everything drawn.
        folder: gets a folder for each training.
        workers: processes; one a CPU core if None.
    """
    names = [f"{execution}-{ratio:g}" for ratio in ratios for execution in EXECUTIONS]
    judged = run_all(partial(train, problem, folder), names, seeds, workers)
    return table(problem, ratios, judged)


def train(problem: str, folder: Path, name: str, seed: int) -> Judged:
    """Train, or take what was trained, and judge it.

    Args:
        problem, folder: as for :func:`compare_executions`.
        name: execution and keep ratio, such as ``probes-0.7``.
        seed: of everything drawn.
    """
    path, what = folder / f"{problem}-{name}-{seed}", PROBLEMS[problem]
    answers = path / "answers.npz"
    if not answers.exists():
        execution, _, ratio = name.partition("-")
        settings = {"model.execution": EXECUTIONS[execution], "model.keep_ratio": float(ratio), "seed": seed}
        dynavit.train(what.config, settings | {"output_dir": str(path)}, resume=True)
        judged = judge(path, what.test)
        np.savez_compressed(answers, values=judged.values, groups=judged.groups)
    return Judged(**np.load(answers))


def judge(path: Path, test: dict[str, Any], absent: tuple[int, ...] = ()) -> Judged:
    """Return what the trained model in ``path`` gets right of the validation data, with settings changed.

    Args:
        path: of the run.
        test: settings.
        absent: spectra that it does without.
    """
    run = open_run(path, device="cpu", overrides=as_words(test))
    run.model.absent = absent
    assert run.config is not None
    task = create_task(run.config)
    data = task.open_data(run.preprocessing, train=False, augment=False, class_names=run.class_names)
    variants, accelerator = [Variant("pruned", 1.0, run.model)], gathering_accelerator(run.device)
    (found,) = evaluate_variants(variants, task, data, run.config.data.batch_size, accelerator)
    assert found is not None
    return Judged(found.detail.values.double().numpy(), found.detail.groups.numpy())


def table(problem: str, ratios: Sequence[float], judged: dict[str, list[Judged]]) -> str:
    """Return Markdown: means over seeds, and probes minus masks with its paired 95 % interval, images within seeds."""
    what, columns = PROBLEMS[problem], []
    for ratio in ratios:
        masks, probes = (judged[f"{execution}-{ratio:g}"] for execution in EXECUTIONS)
        mean = [np.mean([one.values for one in runs], axis=0) for runs in (masks, probes)]
        change, low, high = paired_bootstrap(mean[0], mean[1], groups=masks[0].groups, samples=2000)
        columns.append([f"{ratio:g}", *(_spread(runs) for runs in (masks, probes)), f"{change:+.2f}"])
        columns[-1] += [f"{low:+.2f} to {high:+.2f}", "yes" if low > -what.tolerated else "no"]
    header = ["keep ratio", f"{what.metric}, masks", "probes", "difference", "95 % interval"]
    header.append(f"above -{what.tolerated:g}")
    return markdown(
        [Column(title, list(cells)) for title, cells in zip(header, zip(*columns, strict=True), strict=True)]
    )


def _spread(runs: Sequence[Judged]) -> str:
    means = [float(one.values.mean()) for one in runs]
    return f"{np.mean(means):.2f} [{min(means):.2f}, {max(means):.2f}]"
