"""The sweep: accuracy against MACs against measured speed, for several keep ratios."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from dynavit.config import Config, EvaluateConfig
from dynavit.cost.macs import closed_form_macs, tokens_per_stage
from dynavit.errors import InputError
from dynavit.evaluation.calibration import calibrated, check_adaptive, token_statistics
from dynavit.evaluation.ranked import draw_ranked_lists
from dynavit.evaluation.results import Row, write_results
from dynavit.evaluation.speed import images_timed, time_models
from dynavit.files import require_folder
from dynavit.models import PrunedViT, prune
from dynavit.report.table import accuracy_base
from dynavit.runs.build import build_start, starts_trained
from dynavit.runs.loading import first_images, make_loader, prepare_loader, random_samples
from dynavit.runs.open import Run
from dynavit.runs.pair import after_move
from dynavit.tasks import Evaluation, Task, create_task

_MOST = 65536  # images in a batch that is timed


class Variant(NamedTuple):
    """A row in the making.

    Attributes:
        kind: "dense", "pruned" or "adaptive".
        ratio: its keep ratio.
        model: in eval mode.
        trained: on these classes, so that its accuracy means something.
    """

    kind: str
    ratio: float
    model: PrunedViT
    trained: bool = True


def evaluate_run(
    run: Run,
    keep_ratios: Sequence[float] | None = None,
    batch_sizes: Sequence[int] | None = None,
    output: Path | None = None,
    adaptive: bool | None = None,
) -> list[Row]:
    """Evaluate a run at several keep ratios and write tables, figures and a page.

    The first row is the dense model that the run started from, on the same data; deltas and speedups are to it. Where
    that never learned these classes, the row has its MACs and speed alone, and deltas are to the run's own model with
    all tokens kept, which is then always among the rows. Timings of all rows are interleaved, and speedups are medians
    of ratios within a round. Several processes share the images; the main one alone measures speed, draws and writes,
    so the rows of the others have no speed.

    Args:
        run: an opened run with a configuration.
        keep_ratios: r keeps r, r^2, r^3 ... over the stages; the configuration's if None.
        batch_sizes: at which speed is measured; an empty list measures none.
        output: where ``evaluation.json``, ``evaluation.csv``, ``pareto.png``, ``kept_tokens.png``,
            ``token_counts.png``, ``ranked_lists.png`` and ``report.html`` go; the run's folder if None.
        adaptive: add for each ratio below 1 a row in which every image keeps as many tokens as it needs, by
            thresholds calibrated on training images; the configuration's choice if None.

    Raises:
        InputError: the folder has no configuration to take data from, an impossible ratio, or ``adaptive`` for a
            model that does not choose tokens by scores.
    """
    if run.config is None:
        raise InputError(
            f"{run.path} has no config.yaml, which says on which data to evaluate: add data.root=IMAGES, a folder with "
            f"IMAGES/{Config().data.validation_split}/CLASS, or for other layouts data.name=NAME, too."
        )
    run.require_classifier()
    settings: EvaluateConfig = run.config.evaluate
    adaptive = bool(run.model.stages) and (settings.adaptive if adaptive is None else adaptive)
    if adaptive:
        check_adaptive(run.model)
    output = output or run.path
    require_folder(output)
    batch_sizes = settings.batch_sizes if batch_sizes is None else batch_sizes
    if any(size > _MOST for size in batch_sizes):
        raise InputError(f"--batch-sizes {list(batch_sizes)}: at most {_MOST:,} images.")
    # images go to the model's device, whichever it is
    accelerator = Accelerator(cpu=run.device.type == "cpu", device_placement=False)
    task = create_task(run.config)
    data = task.open_data(run.preprocessing, train=adaptive, augment=False, class_names=run.class_names)
    for note in data.notes:
        accelerator.print(note)
    loader = prepare_loader(
        accelerator, make_loader(data.validation, run.config.data.batch_size, run.config.data.workers)
    )
    ratios = list(settings.keep_ratios if keep_ratios is None else keep_ratios) if run.model.stages else []
    variants = _variants(run, task, data, ratios, adaptive)

    trained = [variant.model for variant in variants if variant.trained]
    found = iter(task.evaluate(trained, loader, accelerator, data, "accuracy"))
    evaluations = [next(found) if variant.trained else None for variant in variants]
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
    searched = _deployed(run, variants, evaluations)
    if reference.searched is not None and searched is None:
        (again,) = task.evaluate([run.model], loader, accelerator, data, "ranked lists")
        searched = again.searched
    if accelerator.is_main_process:
        _time(run, task, data, rows, [variant.model for variant in variants], batch_sizes)
        ranked = draw_ranked_lists(run, data, searched) if searched is not None else None
        sample = torch.stack(first_images(data.validation, 4))
        write_results(run, rows, output, sample, task.metric, ranked)
    return rows


def _row(variant: Variant, evaluation: Evaluation | None, task: Task) -> Row:
    row: Row = {"model": variant.kind, "keep_ratio": variant.ratio}
    if evaluation is not None:
        detail = evaluation.detail
        row |= {**evaluation.metrics, "images": len(detail.values), **task.interval(detail)}
    if evaluation is not None and evaluation.counts is not None:
        return row | token_statistics(variant.model, evaluation.counts)
    return row | {"tokens": tokens_per_stage(variant.model), "gmacs": closed_form_macs(variant.model) / 1e9}


def _deployed(run: Run, variants: Sequence[Variant], evaluations: Sequence[Evaluation | None]) -> Any:
    """Return the embeddings at the ratio that the run was trained for, if they are among these."""
    for (_, _, model, _), evaluation in zip(variants, evaluations, strict=True):
        same = model.keep_ratios == run.model.keep_ratios and model.thresholds == run.model.thresholds
        if same and evaluation is not None:
            return evaluation.searched
    return None


def _variants(run: Run, task: Task, data: Any, ratios: list[float], adaptive: bool) -> list[Variant]:
    """Return the models of the rows: the dense one, then each ratio, and behind it its adaptive twin.

    Raises:
        InputError: an impossible ratio.
    """
    if not run.model.stages:
        return [Variant("dense", 1.0, run.model)]
    dense = _dense(run)
    if dense is None and 1.0 not in ratios:
        ratios = [1.0, *ratios]  # something has to be there to compare with
    variants = [Variant("pruned", ratio, run.model.at_ratio(ratio)) for ratio in ratios]
    if adaptive:
        below = [ratio for ratio in ratios if ratio < 1]
        twins = zip(below, calibrated(run, task, data, below), strict=True)
        variants += [Variant("adaptive", ratio, model) for ratio, model in twins]
        variants.sort(key=lambda variant: ratios.index(variant.ratio))
    return [Variant("dense", 1.0, dense or _unpruned(run.model), trained=dense is not None), *variants]


def _dense(run: Run) -> PrunedViT | None:
    """Return the model that the run started from, if that knew the classes."""
    assert run.config is not None
    if run.config.model.checkpoint is None and not starts_trained(run.config, run.class_names):
        return None  # its head was random: there is nothing to compare with
    config = after_move(run.config, run.path)
    try:
        start = build_start(config, run.class_names, run.model.side.options() if run.model.side else None)
    except InputError as error:
        warnings.warn(
            f"the model that the run started from is gone, so there is no accuracy of a dense model: {error}",
            stacklevel=2,
        )
        return None
    return start.dense.to(run.device) if start.dense_is_trained else None


def _unpruned(model: PrunedViT) -> PrunedViT:
    """Return a model's backbone and head without stages: what a dense model costs."""
    dense = prune(model.backbone, stages=())
    dense.neck, dense.side, dense.metadata = model.neck, model.side, model.metadata
    return dense.eval()


def _time(
    run: Run,
    task: Task,
    data: Any,
    rows: list[Row],
    models: list[PrunedViT],
    batch_sizes: Sequence[int],
) -> None:
    """Add to each row its speed on validation images."""
    if not batch_sizes:
        return
    assert run.config is not None
    count = images_timed(models, batch_sizes)
    samples = random_samples(data.validation, count, run.config.data.batch_size)
    images, indices = (torch.cat(parts) for parts in zip(*samples, strict=True))

    def inputs(model: PrunedViT, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return task.inputs(model, data, indices)

    speeds = time_models(models, images.to(run.device), indices, inputs, batch_sizes, run.config.evaluate.rounds)
    for row, speed in zip(rows, speeds, strict=True):
        row["throughput"] = speed
