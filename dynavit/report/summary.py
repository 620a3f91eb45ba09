"""The rows of an evaluation in a sentence or two."""

from __future__ import annotations

from collections.abc import Sequence

from dynavit.report.rows import (
    accuracy_base,
    base_name,
    first_ratio,
    is_dense,
    is_rival,
    metric_name,
    ratio_text,
    require_rows,
    row_name,
    throughput,
)
from dynavit.report.table import signed, significant
from dynavit.tables import Row

_HEADLINE_RATIO = 0.7


def headline(rows: Sequence[Row], metric: str = "top1") -> str:
    """Say in one sentence what pruning gave, at the keep ratio nearest to 0.7.

    Raises:
        InputError: no row.

    Example:
        >>> pruned = {"model": "pruned", "keep_ratio": 0.7, "gmacs_ratio": 1.54, "top1": 79.4, "delta_top1": -0.4}
        >>> headline([{"model": "dense", "top1": 79.8}, pruned])
        'At keep ratio 0.7: 1.54x fewer MACs, -0.4 points top-1 against the dense model.'
    """
    require_rows(rows)
    name, base = metric_name(metric), accuracy_base(rows, metric)
    pruned = [row for row in rows if not is_dense(row) and not is_rival(row)]
    if not pruned:
        parts = [f"{significant(rows[0]['gmacs'])} GMACs"] if "gmacs" in rows[0] else []
        parts += [f"{rows[0][metric]:.1f} % {name}"] if metric in rows[0] else []
        return f"The dense model: {', '.join(parts) or 'nothing was measured'}."
    row = min(pruned, key=lambda row: abs(first_ratio(row) - _HEADLINE_RATIO))
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
    require_rows(rows)
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
