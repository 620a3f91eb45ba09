"""What an evaluation leaves behind: tables, figures and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dynavit.files import write_together
from dynavit.report.figures import png
from dynavit.report.histogram import plot_token_counts
from dynavit.report.html import render_report
from dynavit.report.pareto import plot_pareto
from dynavit.report.rows import speed_columns
from dynavit.report.table import is_adaptive
from dynavit.report.tokens import trace_grid
from dynavit.runs.open import Run
from dynavit.selectors.registry import selector_config
from dynavit.tables import csv_text

Row = dict[str, Any]


def write_results(
    run: Run, rows: Sequence[Row], output: Path, sample: Tensor, metric: str, ranked: Image.Image | None
) -> None:
    """Write the results of a sweep.

    Args:
        run: that was evaluated.
        rows: see :mod:`dynavit.report.table`.
        output: folder for ``evaluation.json``, ``evaluation.csv``, ``pareto.png``, ``kept_tokens.png``,
            ``token_counts.png``, ``ranked_lists.png`` and ``report.html``, as far as there is something to draw.
        sample: a few images ``(B, 3, H, W)`` on which to show the tokens.
        metric: of the rows, to be shown.
        ranked: ranked lists of a re-identification model.

    Raises:
        InputError: a file cannot be written; then all that stood there before stays.
    """
    files: dict[str, str | bytes] = {
        "evaluation.json": json.dumps(rows, indent=2) + "\n",
        "evaluation.csv": csv_text([_flat(row) for row in rows]),
        "pareto.png": png(partial(plot_pareto, rows, metric=metric)),
    }
    pictures: dict[str, Any] = {"Accuracy, MACs and speed": files["pareto.png"]}
    if run.model.stages and any(ratio < 1 for ratio in run.model.keep_ratios):
        picture = draw_kept_tokens(run, sample)
        files["kept_tokens.png"] = png(partial(picture.save, format="PNG"))
        caption = "Tokens kept after each stage" if run.model.scorers else "Patches merged into one token"
        pictures[caption] = picture
    if any(is_adaptive(row) for row in rows):
        files["token_counts.png"] = png(partial(plot_token_counts, rows))
        pictures["Tokens that images keep where each keeps as many as it needs"] = files["token_counts.png"]
    if ranked is not None:
        files["ranked_lists.png"] = png(partial(ranked.save, format="PNG"))
        pictures["What is found first for some queries; dropped patches are faded"] = ranked
    assert run.config is not None
    settings = {
        "folder": str(run.path),
        "architecture": run.model.architecture,
        "stages": list(run.model.stages),
        "selector": selector_config(run.model.selector)["name"],
        **({"scorer": run.model.scorers[0].name} if run.model.scorers else {}),
        "reducer": run.model.reducer.name,
        "data": run.config.data.name,
        "device": str(run.device),
        "torch threads": torch.get_num_threads(),
    }
    title = f"{run.config.name}: accuracy against cost"
    files["report.html"] = render_report(title, rows, pictures, settings, metric)
    write_together(output, files)


@torch.inference_mode()
def draw_kept_tokens(run: Run, images: Tensor, captions: Sequence[str] | None = None) -> Image.Image:
    """Draw images ``(B, 3, H, W)`` with the tokens that the model keeps after each stage, or merges."""
    _, trace = run.model(images.to(run.device), return_trace=True, **run.model.unknown_cameras(len(images)))
    pixels = [run.pixels(image) for image in images]
    return trace_grid(pixels, trace, run.model.adapter.grid_size, captions=captions)


def _flat(row: Row) -> Row:
    """Return a row whose cells are numbers or text: lists become numbers with spaces between, mappings columns."""
    flat: Row = {}
    for name, value in row.items():
        if name == "throughput":
            flat |= speed_columns(row)
        elif isinstance(value, dict):
            flat |= {f"{name}_{key}": " ".join(map(str, numbers)) for key, numbers in value.items()}
        else:
            flat[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    return flat
