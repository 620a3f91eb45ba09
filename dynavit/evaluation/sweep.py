"""The one evaluation: accuracy, MACs, tokens and speed of variants of a model, on images that are read once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from dynavit.config import Config
from dynavit.cost.macs import mean_macs, tokens_per_stage
from dynavit.errors import InputError
from dynavit.evaluation.classes import compare_classes
from dynavit.evaluation.drawings import draw_ranked_lists, example_images
from dynavit.evaluation.results import write_evaluation
from dynavit.evaluation.rivals import all_smaller_images, nearest, parse_rivals, smaller_images, trained_rival
from dynavit.evaluation.spectra import spectra_rows, spectra_variants
from dynavit.evaluation.speed import time_models
from dynavit.evaluation.variants import Variant, check_adaptive, run_variants
from dynavit.files import require_folder
from dynavit.models import PrunedViT
from dynavit.models.guides import check_unguided
from dynavit.numbers import checked_whole
from dynavit.report.rows import accuracy_base
from dynavit.report.table import aligned, spectra_columns
from dynavit.runs.loading import make_loader, prepare_loader
from dynavit.runs.open import Run
from dynavit.runs.processes import num_processes
from dynavit.tables import Row
from dynavit.tasks import Evaluation, Task, create_task

_MOST = 65536  # images in a batch that is timed
_BINS = 10
_QUICK = 3  # rounds that choose smaller images; what is reported is measured again


def gathering_accelerator(device: torch.device) -> Accelerator:
    """Return what gathers the answers of several processes, and places nothing.

    Accelerate keeps one device a process. A process by itself takes that of the trainer, which may have run before.
    """
    cpu = not torch.cuda.is_available() or (num_processes() > 1 and device.type == "cpu")
    return Accelerator(cpu=cpu, device_placement=False)


def evaluate_variants(
    variants: Sequence[Variant], task: Task, data: Any, batch_size: int, accelerator: Accelerator
) -> list[Evaluation | None]:
    """Return what is found of each variant on the validation images, which are read once; None if it is not trained.

    Several processes share the images.

    Args:
        variants: their models, in eval mode on one device, to which images go.
        task: judges them.
        data: opened by the task.
        batch_size: images a process sees at a time.
        accelerator: which need not place anything.

    Raises:
        InputError: not one image can be read.
    """
    loader = prepare_loader(accelerator, make_loader(data.validation, batch_size, task.config.data.workers))
    trained = [variant.model for variant in variants if variant.trained]
    evaluations = iter(task.evaluate(trained, loader, accelerator, data, "accuracy"))
    return [next(evaluations) if variant.trained else None for variant in variants]


def make_rows(variants: Sequence[Variant], evaluations: Sequence[Evaluation | None], task: Task) -> list[Row]:
    """Return the rows of variants, still without speed: see :mod:`dynavit.report.rows`.

    Args:
        variants: the first is what MACs are compared with.
        evaluations: of each; at least one is of a trained model.
        task: that evaluated them.
    """
    rows = [_row(variant, evaluation, task) for variant, evaluation in zip(variants, evaluations, strict=True)]
    base = accuracy_base(rows, task.metric)
    reference = evaluations[base]
    assert reference is not None
    for row, evaluation in zip(rows, evaluations, strict=True):
        row["gmacs_ratio"] = rows[0]["gmacs"] / row["gmacs"]
        row["throughput"] = {}
        if evaluation is not None:
            row[f"delta_{task.metric}"] = row[task.metric] - rows[base][task.metric]
            row |= task.difference(reference.detail, evaluation.detail) if evaluation is not reference else {}
    return rows


def evaluate_run(
    run: Run,
    keep_ratios: Sequence[float] | None = None,
    batch_sizes: Sequence[int] | None = None,
    output: Path | None = None,
    adaptive: bool | None = None,
    rivals: str | None = None,
    rival_runs: Sequence[str | Path] = (),
) -> list[Row]:
    """Evaluate a run at several keep ratios, beside smaller images, and write tables, figures and a page.

    The first row is the dense model that the run started from, on the same data; deltas and speedups are to it. Where
    that never learned these classes, the row has its MACs and speed alone, and deltas are to the run's own model with
    all tokens kept, which is then always among the rows. Timings of all rows are interleaved, and speedups are medians
    of ratios within a round. Several processes share the images; the main one alone measures speed, draws and writes,
    so the rows of the others have no speed.

    Args:
        run: an opened run with a configuration.
        keep_ratios: r keeps r, r^2, r^3 ... over the stages, or as the count rule says; the configuration's if None.
        batch_sizes: at which speed is measured; an empty list measures none.
        output: where ``evaluation.json``, ``evaluation.csv``, ``pareto.png``, ``kept_tokens.png``,
            ``token_counts.png``, ``ranked_lists.png`` and ``report.html`` go, and of several spectra ``spectra.json``
            and ``spectra.md``, what is left where some are missing; the run's folder if None.
        adaptive: add for each ratio below 1 a row in which every image keeps as many tokens as it needs, by
            thresholds calibrated on training images; the configuration's choice if None.
        rivals: the dense model on smaller images, not trained on these: heights in pixels with commas between them,
            ``"auto"`` for those nearest in time to each of the ratios (in MACs where no speed is measured), or
            ``"none"``; the configuration's if None.
        rival_runs: folders of other trained models of the same classes, such as one trained on smaller images.

    Raises:
        InputError: the folder has no configuration to take data from, an impossible ratio, ``adaptive`` for a model
            that does not choose tokens by scores, or rivals that cannot be made.
    """
    if run.config is None:
        raise InputError(
            f"{run.path} has no config.yaml, which says on which data to evaluate: add data.root=IMAGES, a folder with "
            f"IMAGES/{Config().data.validation_split}/CLASS, or for other layouts data.name=NAME, too."
        )
    run.require_classifier()
    check_unguided(run.model, run.model.num_spectra)
    settings = run.config.evaluate
    adaptive = bool(run.model.stages) and (settings.adaptive if adaptive is None else adaptive)
    if adaptive:
        check_adaptive(run.model)
    output = output or run.path
    require_folder(output)
    batch_sizes = settings.batch_sizes if batch_sizes is None else batch_sizes
    batch_sizes = [checked_whole("batch_sizes", size, 1) for size in batch_sizes]
    if any(size > _MOST for size in batch_sizes):
        raise InputError(f"--batch-sizes {list(batch_sizes)}: at most {_MOST:,} images.")
    heights = parse_rivals(settings.rivals if rivals is None else rivals)
    # images go to the model's device, whichever it is
    accelerator = gathering_accelerator(run.device)
    task = create_task(run.config)
    data = task.open_data(run.preprocessing, train=adaptive, augment=False, class_names=run.class_names)
    for note in data.notes:
        accelerator.print(note)
    variants = run_variants(run, task, data, settings.keep_ratios if keep_ratios is None else keep_ratios, adaptive)
    others = [trained_rival(path, run) for path in rival_runs]
    others = [*_smaller_images(run, task, data, variants, heights, batch_sizes), *others]
    # the ranked lists are those of the model as it was trained, which may be none of the rows
    deployed = next((n for n, variant in enumerate(variants) if _is_deployed(variant.model, run)), len(variants))
    more = [Variant("pruned", 1.0, run.model)] if run.is_reid and deployed == len(variants) else []
    some = spectra_variants(run)
    judged = [*variants, *more, *some]
    evaluations = evaluate_variants(judged, task, data, run.config.data.batch_size, accelerator)
    found = [*evaluations[: len(variants)], *(_evaluate_rival(rival, run, accelerator) for rival in others)]
    compared = [*variants, *others]
    rows = make_rows(compared, found, task)
    if accelerator.is_main_process:
        throughputs = time_models(compared, task, data, batch_sizes, settings.rounds)
        for row, throughput in zip(rows, throughputs, strict=True):
            row["throughput"] = throughput
        as_deployed = evaluations[deployed] if run.is_reid else None
        ranked = None if as_deployed is None else draw_ranked_lists(run, data, as_deployed.searched)
        left: list[Row] = []
        if some and as_deployed is not None:
            left = spectra_rows(some, evaluations[-len(some) :], as_deployed, task)
            table = aligned(spectra_columns(left, task.metric))
            accelerator.print(f"The model as trained, with some spectra missing:\n\n{table}\n")
        classes = None if run.is_reid else compare_classes(rows, found, data.class_names, deployed)
        sample, captions = example_images(data, next(one.predicted for one in evaluations if one is not None))
        write_evaluation(run, rows, output, sample, task.metric, ranked, left, classes, captions)
    return rows


def _smaller_images(
    run: Run,
    task: Task,
    data: Any,
    variants: Sequence[Variant],
    heights: Sequence[int] | None,
    batch_sizes: Sequence[int],
) -> list[Variant]:
    """Return the first variant's model, which keeps all tokens, on smaller images."""
    dense, pruned = variants[0].model, [variant for variant in variants if variant.kind != "dense"]
    if heights is not None:
        return [smaller_images(dense, run.preprocessing, height) for height in heights]
    if not pruned:
        return []

    every = all_smaller_images(dense, run.preprocessing)
    costs = [variant.macs for variant in [*pruned, *every]]
    if batch_sizes:
        speeds = time_models([*pruned, *every], task, data, batch_sizes[-1:], _QUICK)
        costs = [1 / speed[str(batch_sizes[-1])]["images_per_second"] for speed in speeds]
    (places,) = broadcast_object_list([nearest(costs[: len(pruned)], costs[len(pruned) :]) if every else []])
    return [every[place] for place in places]


def _evaluate_rival(rival: Variant, run: Run, accelerator: Accelerator) -> Evaluation | None:
    """Return what is found of a rival on images that are prepared as it wants them."""
    assert run.config is not None
    assert rival.preprocessing is not None
    task = create_task(run.config)
    data = task.open_data(rival.preprocessing, train=False, augment=False, class_names=run.class_names)
    (evaluation,) = evaluate_variants([rival], task, data, run.config.data.batch_size, accelerator)
    return evaluation


def _is_deployed(model: PrunedViT, run: Run) -> bool:
    return model.keep_ratios == run.model.keep_ratios and model.thresholds == run.model.thresholds


def _row(variant: Variant, evaluation: Evaluation | None, task: Task) -> Row:
    model = variant.model
    row: Row = {**variant.about, "model": variant.kind, "keep_ratio": variant.keep_ratio}
    if evaluation is not None:
        detail = evaluation.detail
        row |= {**evaluation.metrics, "images": len(detail.values), **task.interval(detail)}
    if evaluation is not None and evaluation.counts is not None:
        return row | _count_statistics(model, evaluation.counts)
    return row | {"tokens": tokens_per_stage(model), "gmacs": variant.macs / 1e9}


def _count_statistics(model: PrunedViT, counts: Tensor) -> Row:
    """Return what a row says of the tokens kept of each image, ``(S, M, stages)`` of M spectra."""
    assert model.thresholds is not None
    counts = counts.flatten(0, 1)
    last = counts[:, -1].numpy()
    # bins of a whole number of tokens: else some would hold one more value than others
    edges = int(last.min()) + np.arange(_BINS + 1) * -(-(int(last.max()) + 1 - int(last.min())) // _BINS)
    images, _ = np.histogram(last, bins=edges)
    return {
        "tokens": counts.double().mean(dim=0).tolist(),
        "gmacs": mean_macs(model, counts) / 1e9,
        "tokens_p95": int(np.percentile(last, 95, method="inverted_cdf")),
        "tokens_histogram": {"edges": edges.tolist(), "images": images.tolist()},
        "thresholds": [threshold if math.isfinite(threshold) else None for threshold in model.thresholds],
    }
