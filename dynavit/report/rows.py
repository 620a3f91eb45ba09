"""The rows of an evaluation: what each says of a model, and what it is compared with.

A row is a mapping, as ``evaluation.json`` holds a list of them, and ``methods.json`` under ``rows``:

- ``model``: "dense" for the starting checkpoint, "pruned", "adaptive" where images keep different numbers of tokens,
  or "rival" for what one would do instead of pruning;
- ``keep_ratio``: a number, or one a stage; ``tokens``: patch tokens kept after each stage;
- of "rival" rows ``rival``, what it is called; ``image_size``, the height and width of its images in pixels; and
  ``rival_run``, its folder, unless it is the dense model on smaller images;
- ``gmacs``: 1e9 multiply-accumulates an image; ``gmacs_ratio``: the dense model's over these;
- of "adaptive" rows, whose ``tokens`` and ``gmacs`` are means over images: ``tokens_p95``, which 95 % of the images do
  not exceed after the last stage; ``tokens_histogram``, ``{"edges": 11 numbers, "images": 10 counts}``, how many images
  keep so many then, from an edge to below the next; ``thresholds``, one a stage, None where everything is kept;
- the metric (``top1``, ``map``, ...) in percent, ``<metric>_low`` and ``_high``, its 95 % interval, and ``images``, or
  queries, that it is the mean of; ``delta_<metric>``: points against :func:`accuracy_base`; ``delta_<metric>_low`` and
  ``_high``: the 95 % interval of that;
- ``throughput``: ``{batch size: {"images_per_second": ..., "speedup": ...}}``;
- where methods are compared, ``method``: its name; and but for the dense row ``budget_gmacs``, which it may cost, and
  ``budget_ratio``, the keep ratio at which plain dropping costs that.

All but ``model`` may be missing: a dense model that was not trained on these classes has MACs and speed alone. Ratios
and speedups are against the dense row, or against the first row where there is no dense one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynavit.errors import InputError
from dynavit.tables import Row

_METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "map": "mAP",
    "minp": "mINP",
    "rank1": "rank-1",
    "rank5": "rank-5",
    "rank10": "rank-10",
}


def require_rows(rows: Sequence[Row]) -> None:
    """Refuse to report nothing.

    Raises:
        InputError: no row.
    """
    if not rows:
        raise InputError("there is no row to report: evaluate at one keep ratio or more.")


def is_dense(row: Row) -> bool:
    """Whether this is the starting model."""
    return bool(row["model"] == "dense")


def is_pruned(row: Row) -> bool:
    """Whether this keeps the same number of tokens in every image."""
    return bool(row["model"] == "pruned")


def is_adaptive(row: Row) -> bool:
    """Whether images keep as many tokens as each needs."""
    return bool(row["model"] == "adaptive")


def is_rival(row: Row) -> bool:
    """Whether this is what one would do instead of pruning, such as smaller images."""
    return bool(row["model"] == "rival")


def has_smaller_images(row: Row) -> bool:
    """Whether this is the dense model on smaller images, without training on these."""
    return is_rival(row) and "rival_run" not in row


def is_trained_rival(row: Row) -> bool:
    """Whether this is another trained model."""
    return is_rival(row) and "rival_run" in row


def compares_methods(rows: Sequence[Row]) -> bool:
    """Whether rows are of methods rather than of one model at several ratios."""
    return any("method" in row for row in rows)


def accuracy_base(rows: Sequence[Row], metric: str) -> int:
    """Return the number of the row that deltas are against.

    That is the dense model if its accuracy is known, else the run's own model with all tokens kept, else the first.
    """
    known = [number for number, row in enumerate(rows) if row.get(metric) is not None]
    whole = [n for n in known if is_pruned(rows[n]) and first_ratio(rows[n]) == 1]
    return next(iter([*(n for n in known if is_dense(rows[n])), *whole, *known]), 0)


def base_name(rows: Sequence[Row]) -> str:
    """Return what ratios and speedups are against."""
    return row_name(next((row for row in rows if is_dense(row)), rows[0]))


def row_name(row: Row) -> str:
    """Return what a row is called in a sentence."""
    if is_rival(row):
        return str(row["rival"])
    return "the dense model" if is_dense(row) else f"keep ratio {ratio_text(row)}"


def metric_name(metric: str) -> str:
    """Return how a metric is printed: ``top-1`` for ``top1``."""
    return _METRICS.get(metric, metric)


def first_ratio(row: Row) -> float:
    """Return the keep ratio of the first stage."""
    ratio = row.get("keep_ratio", 1.0)
    return float(ratio[0] if isinstance(ratio, Sequence) else ratio)


def ratio_text(row: Row) -> str:
    """Return a row's keep ratio as text: ``0.7``, or ``0.7/0.5/0.3`` where stages have their own; ``-`` if dense."""
    ratio = row.get("keep_ratio")
    if ratio is None or is_dense(row) or has_smaller_images(row):
        return "-"
    ratios = ratio if isinstance(ratio, Sequence) else [ratio]
    return "/".join(str(round(float(r), 3)) for r in ratios)


def throughput(row: Row) -> dict[int, Mapping[str, Any]]:
    """Return a row's speeds by batch size, which JSON turns into text."""
    return {int(size): speeds for size, speeds in (row.get("throughput") or {}).items()}


def batch_sizes(rows: Sequence[Row]) -> list[int]:
    """Return every batch size that any row was timed at, ascending."""
    return sorted({size for row in rows for size in throughput(row)})


def flat(row: Row) -> dict[str, Any]:
    """Return a row whose cells are numbers or text: lists become numbers with spaces between, mappings columns.

    Speeds are ``images_per_second_32``, ``speedup_32`` and so on.
    """
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if name == "throughput":
            for size, speed in throughput(row).items():
                cells |= {f"{key}_{size}": speed[key] for key in ("images_per_second", "speedup")}
        elif isinstance(value, dict):
            cells |= {f"{name}_{key}": " ".join(map(str, numbers)) for key, numbers in value.items()}
        else:
            cells[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    return cells
