"""What speed costs in accuracy, by pruning and by what one would do instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynavit.report.rows import (
    accuracy_base,
    batch_sizes,
    has_smaller_images,
    is_dense,
    is_pruned,
    metric_name,
    ratio_text,
    throughput,
)
from dynavit.report.table import Column, signed
from dynavit.tables import Row

PRICES = "What speed costs, in points; interpolated between measured rows:"
"""What stands above :func:`price_columns`."""

PAYS = 1.05
"""Times as fast as the dense model that a way has to be; less is noise, and not worth a change of the model."""

_SPEEDUPS = (1.5, 2.0)
_PRUNED, _ADAPTIVE, _SMALLER = "pruned", "adaptive", "smaller images"


@dataclass(frozen=True)
class Curve:
    """One way to be faster: points of speedup and metric, ascending by speedup."""

    points: Sequence[tuple[float, float]]

    def at(self, speedup: float) -> float | None:
        """Return the metric at a speedup, on the straight line between the two nearest points; None outside."""
        for (slow, before), (fast, after) in zip(self.points, self.points[1:], strict=False):
            if slow <= speedup <= fast:
                share = (speedup - slow) / (fast - slow) if fast > slow else 1.0
                return before + share * (after - before)
        return None


def curves(rows: Sequence[Row], metric: str, batch_size: int) -> dict[str, Curve]:
    """Return the ways that rows show, each with two points or more; all begin at the dense model.

    Args:
        rows: see :mod:`dynavit.report.rows`.
        metric: in percent.
        batch_size: at which speed was measured.
    """
    points: dict[str, list[tuple[float, float]]] = {_PRUNED: [], _ADAPTIVE: [], _SMALLER: []}
    for row in rows:
        speed = throughput(row).get(batch_size)
        if speed is None or row.get(metric) is None:
            continue
        way = _SMALLER if has_smaller_images(row) else str(row["model"])
        for found in points.values() if is_dense(row) else [points.get(way, [])]:
            found.append((speed["speedup"], row[metric]))
    return {way: Curve(sorted(found)) for way, found in points.items() if len(found) > 1}


def price_columns(rows: Sequence[Row], metric: str = "top1") -> list[Column]:
    """Return a table of what speed costs in points, between measured rows; no column where nothing was timed.

    Args:
        rows: see :mod:`dynavit.report.rows`.
        metric: in percent.
    """
    sizes = batch_sizes(rows)
    ways = {size: curves(rows, metric, size) for size in sizes}
    names = [way for way in (_PRUNED, _ADAPTIVE, _SMALLER) if any(way in found for found in ways.values())]
    if not names:
        return []
    base = rows[accuracy_base(rows, metric)][metric]
    columns = [Column("way", names, left=True)]
    for size in sizes:
        for speedup in _SPEEDUPS:
            found = [ways[size][way].at(speedup) if way in ways[size] else None for way in names]
            cells = ["-" if value is None else f"~{signed(value - base, 1)}" for value in found]
            columns.append(Column(f"{speedup:g}x", cells, f"batch {size}"))
    return columns


def advice(rows: Sequence[Row], metric: str = "top1") -> list[str]:
    """Say for each batch size at which keep ratios smaller images are the better way to the same speed.

    Args:
        rows: see :mod:`dynavit.report.rows`.
        metric: in percent.
    """
    lines = []
    for size in batch_sizes(rows):
        smaller = curves(rows, metric, size).get(_SMALLER, Curve(()))
        timed = [row for row in rows if is_pruned(row) and metric in row and size in throughput(row)]
        paying = [row for row in timed if throughput(row)[size]["speedup"] >= PAYS]
        if timed and not paying and smaller.points:
            fastest = max(speedup for speedup, _ in smaller.points)
            lines.append(
                f"Batch {size}: no keep ratio is faster than the dense model; smaller images are, {fastest:.2f}x."
            )
        timed = paying
        rivals = [smaller.at(throughput(row)[size]["speedup"]) for row in timed]
        pairs = zip(timed, rivals, strict=True)
        ahead = {ratio_text(row): row[metric] - rival for row, rival in pairs if rival is not None}
        if not ahead:
            continue
        behind = {ratio: -points for ratio, points in ahead.items() if points < 0}
        name = metric_name(metric)
        if behind:
            worse = ", ".join(f"{ratio} (by {points:.1f} points)" for ratio, points in behind.items())
            lines.append(
                f"Batch {size}: at the speed of keep ratio {worse} the dense model on smaller images has the higher "
                f"{name}, though it was not trained on these."
            )
        else:
            points = " to ".join(sorted({f"{some(ahead.values()):.1f}" for some in (min, max)}, key=float))
            lines.append(
                f"Batch {size}: at equal speed pruning has {points} points {name} more than the dense model on smaller "
                f"images, which was not trained on these."
            )
    return lines
