"""The sweep: accuracy against MACs against measured speed, for several keep ratios."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dynavit.config import EvaluateConfig
from dynavit.data.reid import ReidData
from dynavit.engine.build import build_start, starts_trained
from dynavit.engine.loading import first_images, make_loader, prepare_loader
from dynavit.engine.ranked import draw_ranked_lists
from dynavit.engine.run import Run
from dynavit.engine.tasks import create_task
from dynavit.engine.tasks.reid import ReidTask, Searchable
from dynavit.errors import InputError
from dynavit.metrics.efficiency import closed_form_macs, tokens_per_stage
from dynavit.metrics.timing import measure, median_ratio
from dynavit.models import PrunedViT
from dynavit.report.html import write_report
from dynavit.report.pareto import plot_pareto
from dynavit.report.tokens import kept_token_grid

Row = dict[str, Any]


def evaluate_run(
    run: Run,
    keep_ratios: Sequence[float] | None = None,
    batch_sizes: Sequence[int] | None = None,
    output: Path | None = None,
) -> list[Row]:
    """Evaluate a run at several keep ratios and write tables, figures and a page.

    The first row is the dense model that the run started from, on the same data; deltas and speedups
    are to it. Timings of all rows are interleaved, and speedups are medians of ratios within a round.

    Args:
        run: an opened run with a configuration.
        keep_ratios: r keeps r, r^2, r^3 ... over the stages; the configuration's if None.
        batch_sizes: at which speed is measured; an empty list measures none.
        output: where ``evaluation.json``, ``evaluation.csv``, ``pareto.png``, ``kept_tokens.png``,
            ``ranked_lists.png`` and ``report.html`` go; the run's folder if None.

    Raises:
        InputError: the folder has no configuration to take data from, or an impossible ratio.
    """
    if run.config is None:
        raise InputError(f"{run.path} has no config.yaml, which says on which data to evaluate.")
    settings: EvaluateConfig = run.config.evaluate
    output = output or run.path
    output.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=run.device.type == "cpu")
    task = create_task(run.config)
    data = task.open_data(run.preprocessing, train=False)
    if not isinstance(data, ReidData) and tuple(data.class_names) != run.class_names:
        raise InputError(
            f"the data have the classes {', '.join(data.class_names[:5])} ... and the model "
            f"{', '.join(run.class_names[:5])} ...: evaluate on data of the same classes."
        )
    loader = prepare_loader(
        accelerator, make_loader(data.validation, run.config.data.batch_size, run.config.data.workers)
    )

    ratios = list(settings.keep_ratios if keep_ratios is None else keep_ratios) if run.model.stages else []
    variants = [("pruned", ratio, _at(run.model, ratio)) for ratio in ratios]
    dense = _dense(run)
    if dense is not None:
        variants.insert(0, ("dense", 1.0, dense))
    if not variants:
        raise InputError("there is nothing to evaluate: give at least one keep ratio, as in --keep-ratios 0.7")

    rows: list[Row] = []
    details = []
    searched: Searchable | None = None  # embeddings at the ratio that the run was trained for
    for kind, ratio, variant in variants:
        title = "dense" if kind == "dense" else f"keep ratio {ratio:g}"
        rows.append(
            {
                "model": kind,
                "keep_ratio": ratio,
                "tokens": tokens_per_stage(variant),
                "gmacs": closed_form_macs(variant) / 1e9,
                **task.evaluate(variant, loader, accelerator, data, title),
            }
        )
        details.append(task.detail())
        if isinstance(task, ReidTask) and variant.keep_ratios == run.model.keep_ratios:
            searched = task.searched
    base = rows[0]
    for row, detail in zip(rows, details, strict=True):
        row |= task.difference(details[0], detail) if row is not base else {}
        row["gmacs_ratio"] = base["gmacs"] / row["gmacs"]
        row[f"delta_{task.metric}"] = row[task.metric] - base[task.metric]
        row["throughput"] = {}
    batch_sizes = settings.batch_sizes if batch_sizes is None else batch_sizes
    sample = torch.stack(first_images(data.validation, max([4, *batch_sizes])))
    for batch_size in tqdm(batch_sizes, desc="speed", leave=False, disable=None):
        repeated = sample[torch.arange(batch_size) % len(sample)]
        _time(rows, variants, repeated.to(run.device), settings.rounds)

    if isinstance(task, ReidTask) and searched is None:
        task.evaluate(run.model, loader, accelerator, data, "ranked lists")
        searched = task.searched
    if accelerator.is_main_process:
        ranked = draw_ranked_lists(run, data, searched) if searched is not None else None
        _write(run, rows, output, sample, task.metric, ranked)
    return rows


def _at(model: PrunedViT, ratio: float) -> PrunedViT:
    """Return the same model, weights shared, at another keep ratio."""
    variant = copy(model)
    variant.set_keep_ratio(ratio)
    return variant


def _dense(run: Run) -> PrunedViT | None:
    """The model that the run started from, or the run's own where it never was pruned."""
    if not run.model.stages:
        return run.model
    assert run.config is not None
    if run.config.model.checkpoint is None and not starts_trained(run.config, run.class_names):
        return None  # its head was random: there is nothing to compare with
    try:
        start = build_start(run.config, run.class_names, run.model.side.options() if run.model.side else None)
    except InputError as error:
        warnings.warn(f"no dense row, because the model that the run started from is gone: {error}", stacklevel=2)
        return None
    return start.dense.to(run.device) if start.dense_is_trained else None


@torch.inference_mode()
def _time(rows: list[Row], variants: list[tuple[str, float, PrunedViT]], images: Tensor, rounds: int) -> None:
    """Add images per second and speedup over the first row at one batch size."""
    calls: dict[str, Callable[[], object]] = {}
    for number, (_, _, model) in enumerate(variants):
        calls[str(number)] = partial(model, images, **model.unknown_cameras(len(images)))
    seconds = measure(calls, rounds=rounds)
    for number, row in enumerate(rows):
        mine = seconds[str(number)]
        speedup, low, high = median_ratio(seconds["0"], mine)
        row["throughput"][str(len(images))] = {
            "images_per_second": len(images) / sorted(mine)[len(mine) // 2],
            "speedup": speedup,
            "speedup_range": [low, high],
        }


def _write(run: Run, rows: list[Row], output: Path, sample: Tensor, metric: str, ranked: Image.Image | None) -> None:
    (output / "evaluation.json").write_text(json.dumps(rows, indent=2) + "\n")
    flat = [_flat(row) for row in rows]
    with (output / "evaluation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in flat for name in row)))
        writer.writeheader()
        writer.writerows(flat)
    plot_pareto(rows, output / "pareto.png", metric)
    pictures: dict[str, Any] = {"Accuracy, MACs and speed": output / "pareto.png"}
    if run.model.stages and any(ratio < 1 for ratio in run.model.keep_ratios):
        picture = draw_kept_tokens(run, sample[:4])
        picture.save(output / "kept_tokens.png")
        pictures["Tokens kept after each stage"] = picture
    if ranked is not None:
        ranked.save(output / "ranked_lists.png")
        pictures["What is found first for some queries; dropped patches are faded"] = ranked
    assert run.config is not None
    settings = {
        "folder": str(run.path),
        "architecture": run.model.architecture,
        "stages": list(run.model.stages),
        "selector": run.config.model.selector["name"],
        "data": run.config.data.name,
        "device": str(run.device),
        "torch threads": torch.get_num_threads(),
    }
    write_report(output / "report.html", f"{run.config.name}: accuracy against cost", rows, pictures, settings, metric)


@torch.inference_mode()
def draw_kept_tokens(run: Run, images: Tensor, captions: Sequence[str] | None = None) -> Any:
    """Draw images ``(B, 3, H, W)`` with the tokens that the model keeps after each stage."""
    _, trace = run.model(images.to(run.device), return_trace=True, **run.model.unknown_cameras(len(images)))
    pixels = [run.pixels(image) for image in images]
    masks = [mask.cpu() for mask in trace.masks]
    return kept_token_grid(pixels, masks, run.model.adapter.grid_size, captions=captions)


def _flat(row: Row) -> Row:
    flat = {name: value for name, value in row.items() if name not in ("throughput", "tokens")}
    flat["tokens"] = " ".join(map(str, row["tokens"]))
    for batch_size, speed in row["throughput"].items():
        flat[f"images_per_second_{batch_size}"] = speed["images_per_second"]
        flat[f"speedup_{batch_size}"] = speed["speedup"]
    return flat
