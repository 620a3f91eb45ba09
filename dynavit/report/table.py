"""The rows of an evaluation as a table, and as one sentence.

A row is a mapping, as ``evaluation.json`` holds it:

- ``model``: "dense" for the starting checkpoint, "pruned", or "adaptive" where images keep different numbers of
  tokens;
- ``keep_ratio``: a number, or one a stage; ``tokens``: patch tokens kept after each stage;
- ``gmacs``: 1e9 multiply-accumulates an image; ``gmacs_ratio``: the dense model's over these;
- of "adaptive" rows, whose ``tokens`` and ``gmacs`` are means over images: ``tokens_p95``, which 95 % of the images do
  not exceed after the last stage; ``tokens_histogram``, ``{"edges": 11 numbers, "images": 10 counts}``, how many images
  keep so many then, from an edge to below the next; ``thresholds``, one a stage, None where everything is kept;
- the metric (``top1``, ``map``, ...) in percent, ``<metric>_low`` and ``_high``, its 95 % interval, and ``images``, or
  queries, that it is the mean of; ``delta_<metric>``: points against :func:`accuracy_base`; ``delta_<metric>_low`` and
  ``_high``: the 95 % interval of that;
- ``throughput``: ``{batch size: {"images_per_second": ..., "speedup": ...}}``.

All but ``model`` may be missing: a dense model that was not trained on these classes has MACs and speed alone. Ratios
and speedups are against the dense row, or against the first row where there is no dense one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynavit.errors import InputError
from dynavit.text import printable

Row = Mapping[str, Any]

_METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "map": "mAP",
    "minp": "mINP",
    "rank1": "rank-1",
    "rank5": "rank-5",
    "rank10": "rank-10",
}
_HEADLINE_RATIO = 0.7
_NOTHING = "-"
_INTERVAL = "95 % interval"
_FIRST_OF_GROUP = "images/s"


@dataclass
class Column:
    """A column: its title, the batch size it belongs to (else ""), and a cell for each row."""

    title: str
    group: str = ""
    cells: list[str] = field(default_factory=list)


def columns(rows: Sequence[Row], metric: str = "top1") -> list[Column]:
    """Return the columns of the table of results, all cells as text.

    Raises:
        InputError: no row.
    """
    if not rows:
        raise InputError("there is no row to report: evaluate at one keep ratio or more.")
    table = [
        Column("model", cells=[str(row["model"]) for row in rows]),
        Column("keep ratio", cells=[ratio_text(row) for row in rows]),
        Column("tokens", cells=["/".join(map(_count, row.get("tokens") or [])) or _NOTHING for row in rows]),
        Column("GMACs", cells=[_cell(row.get("gmacs"), significant) for row in rows]),
        Column("x fewer", cells=[_cell(row.get("gmacs_ratio"), lambda x: f"{x:.2f}x") for row in rows]),
        Column(metric_name(metric), cells=[_cell(row.get(metric), lambda x: f"{x:.2f}") for row in rows]),
    ]
    if any(f"{metric}_low" in row for row in rows):
        table.append(Column(_INTERVAL, cells=[_interval(row, metric, lambda x: f"{x:.1f}") for row in rows]))
    base = accuracy_base(rows, metric)
    deltas = [_NOTHING if n == base else _cell(row.get(f"delta_{metric}"), _signed) for n, row in enumerate(rows)]
    table.append(Column("delta", cells=deltas))
    if any(is_adaptive(row) for row in rows):
        table.insert(3, Column("p95", cells=[_cell(row.get("tokens_p95"), _count) for row in rows]))
    if any(f"delta_{metric}_low" in row for row in rows):
        table.append(Column(_INTERVAL, cells=[_interval(row, f"delta_{metric}", _signed) for row in rows]))
    if metric == "map" and any("rank1" in row for row in rows):
        rank1 = [_cell(row.get("rank1"), lambda x: f"{x:.2f}") for row in rows]
        table.append(Column(metric_name("rank1"), cells=rank1))
    for batch_size in batch_sizes(rows):
        speeds = [throughput(row).get(batch_size, {}) for row in rows]
        group = f"batch {batch_size}"
        speed = [_cell(s.get("images_per_second"), significant) for s in speeds]
        speedup = [_cell(s.get("speedup"), lambda x: f"{x:.2f}x") for s in speeds]
        table += [Column(_FIRST_OF_GROUP, group, speed), Column("speedup", group, speedup)]
    return table


def format_table(rows: Sequence[Row], metric: str = "top1") -> str:
    """Return the table of results as aligned plain text.

    Args:
        rows: see the head of this file.
        metric: the metric to show.

    Raises:
        InputError: no row.

    Example:
        >>> print(format_table([{"model": "dense", "gmacs": 4.599, "top1": 79.85}]))
        model  keep ratio  tokens  GMACs  x fewer  top-1  delta
        -----  ----------  ------  -----  -------  -----  -----
        dense           -       -   4.60        -  79.85      -
    """
    table = columns(rows, metric)
    groups = [column.group if column.title == _FIRST_OF_GROUP else "" for column in table]
    lines = [[column.title for column in table], *zip(*(column.cells for column in table), strict=True)]
    if any(groups):
        lines.insert(0, groups)
    return aligned(lines, titles=2 if any(groups) else 1)


def aligned(lines: Sequence[Sequence[str]], left: Container[int] = (0,), titles: int = 1) -> str:
    """Return cells as aligned columns, with a rule below the lines of titles.

    Args:
        lines: as many cells each.
        left: numbers of the columns that are aligned to the left, the others to the right.
        titles: number of lines above the rule.
    """
    lines = [[printable(cell) for cell in line] for line in lines]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    ruled = [*lines[:titles], ["-" * width for width in widths], *lines[titles:]]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in ruled
    )


def headline(rows: Sequence[Row], metric: str = "top1") -> str:
    """Say in one sentence what pruning gave, at the keep ratio nearest to 0.7.

    Raises:
        InputError: no row.

    Example:
        >>> pruned = {"model": "pruned", "keep_ratio": 0.7, "gmacs_ratio": 1.54, "top1": 79.4, "delta_top1": -0.4}
        >>> headline([{"model": "dense", "top1": 79.8}, pruned])
        'At keep ratio 0.7: 1.54x fewer MACs, -0.4 points top-1 against the dense model.'
    """
    if not rows:
        raise InputError("there is no row to report: evaluate at one keep ratio or more.")
    name, base = metric_name(metric), accuracy_base(rows, metric)
    pruned = [row for row in rows if not is_dense(row)]
    if not pruned:
        parts = [f"{significant(rows[0]['gmacs'])} GMACs"] if "gmacs" in rows[0] else []
        parts += [f"{rows[0][metric]:.1f} % {name}"] if metric in rows[0] else []
        return f"The dense model: {', '.join(parts) or 'nothing was measured'}."
    row = min(pruned, key=lambda row: abs(_first_ratio(row) - _HEADLINE_RATIO))
    parts = []
    if row.get("gmacs_ratio") is not None:
        parts.append(f"{row['gmacs_ratio']:.2f}x fewer MACs")
    speeds = [f"{s['speedup']:.2f}x at batch {size}" for size, s in throughput(row).items() if s.get("speedup")]
    if speeds:
        parts.append(f"speed {' and '.join(speeds)}")
    delta = row.get(f"delta_{metric}")
    if delta is not None and row is not rows[base]:
        parts.append(f"{signed(delta, 1)} points {name} against {row_name(rows[base])}")
    elif row.get(metric) is not None:
        parts.append(f"{row[metric]:.1f} % {name}")
    return f"At keep ratio {ratio_text(row)}: {', '.join(parts) or 'nothing was measured'}."


def explain(rows: Sequence[Row], metric: str = "top1") -> str:
    """Say what the numbers of the table are of, and against what its differences are.

    Raises:
        InputError: no row.

    Example:
        >>> explain([{"model": "dense", "top1": 79.85, "images": 5000}])
        'top-1 on 5,000 images.'
    """
    if not rows:
        raise InputError("there is no row to report: evaluate at one keep ratio or more.")
    base = rows[accuracy_base(rows, metric)]
    images, name = base.get("images"), metric_name(metric)
    lines = [f"{name} on {images:,} {'images' if metric.startswith('top') else 'queries'}."] if images else []
    if len(rows) > 1:
        same = base_name(rows) == row_name(base)
        of_accuracy = "" if same else f"; delta in points, against {row_name(base)}, where all tokens are kept"
        what = "Fewer MACs, speedup and delta (points)" if same else "Fewer MACs and speedup"
        lines.append(f"{what}: against {base_name(rows)}{of_accuracy}.")
    if is_dense(rows[0]) and rows[0].get(metric) is None:
        lines.append("No dense model of these classes was found, so that row has no accuracy.")
    return " ".join(lines)


def accuracy_base(rows: Sequence[Row], metric: str) -> int:
    """Return the number of the row that deltas are against.

    That is the dense model if its accuracy is known, else the run's own model with all tokens kept, else the first.
    """
    known = [number for number, row in enumerate(rows) if row.get(metric) is not None]
    whole = [n for n in known if not is_adaptive(rows[n]) and not is_dense(rows[n]) and _first_ratio(rows[n]) == 1]
    return next(iter([*(n for n in known if is_dense(rows[n])), *whole, *known]), 0)


def is_dense(row: Row) -> bool:
    """Whether this is the starting model."""
    return bool(row["model"] == "dense")


def is_adaptive(row: Row) -> bool:
    """Whether images keep as many tokens as each needs."""
    return bool(row["model"] == "adaptive")


def base_name(rows: Sequence[Row]) -> str:
    """Return what ratios and speedups are against."""
    return row_name(next((row for row in rows if is_dense(row)), rows[0]))


def row_name(row: Row) -> str:
    """Return what a row is called in a sentence."""
    return "the dense model" if is_dense(row) else f"keep ratio {ratio_text(row)}"


def metric_name(metric: str) -> str:
    """Return how a metric is printed: ``top-1`` for ``top1``."""
    return _METRICS.get(metric, metric)


def throughput(row: Row) -> dict[int, Mapping[str, Any]]:
    """Return a row's speeds by batch size, which JSON turns into text."""
    return {int(size): speeds for size, speeds in (row.get("throughput") or {}).items()}


def batch_sizes(rows: Sequence[Row]) -> list[int]:
    """Return every batch size that any row was timed at, ascending."""
    return sorted({size for row in rows for size in throughput(row)})


def ratio_text(row: Row) -> str:
    """Return a row's keep ratio as text: ``0.7``, or ``0.7/0.5/0.3`` where stages have their own."""
    ratio = row.get("keep_ratio")
    if ratio is None or is_dense(row):
        return _NOTHING
    ratios = ratio if isinstance(ratio, Sequence) else [ratio]
    return "/".join(str(round(float(r), 3)) for r in ratios)


def significant(value: float, digits: int = 3) -> str:
    """Write a number with three significant digits and no exponent: 0.0423, 4.60, 1,234.

    Example:
        >>> [significant(x) for x in (0.04231, 4.5989, 17.56, 1234.4, 0)]
        ['0.0423', '4.60', '17.6', '1,234', '0']
    """
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(decimals, 0)}f}"


def signed(value: float, decimals: int) -> str:
    """Write a difference with its sign; what rounds to nothing has none.

    Example:
        >>> [signed(x, 1) for x in (0.42, -0.38, -0.01)]
        ['+0.4', '-0.4', '0.0']
    """
    text = f"{value:+.{decimals}f}"
    return text if float(text) else text[1:]


def _count(tokens: float) -> str:
    return str(tokens) if isinstance(tokens, int) else f"{tokens:.1f}"


def _signed(value: float) -> str:
    return signed(value, 2)


def _interval(row: Row, name: str, write: Callable[[float], str]) -> str:
    low, high = (row.get(f"{name}_{end}") for end in ("low", "high"))
    return _NOTHING if low is None or high is None else f"{write(low)} to {write(high)}"


def _first_ratio(row: Row) -> float:
    ratio = row.get("keep_ratio", 1.0)
    return float(ratio[0] if isinstance(ratio, Sequence) else ratio)


def _cell(value: Any, write: Any) -> str:
    return _NOTHING if value is None else str(write(value))
