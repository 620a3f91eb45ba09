"""The rows of a comparison of methods at equal cost: as a table, as Markdown, and as a picture.

A row is a mapping, as ``methods.json`` holds it: ``method``, ``model`` ("dense" or "pruned"), ``budget``,
``budget_gmacs`` and ``keep_ratio`` (missing in the dense row), ``tokens`` (after each stage), ``tokens_p95`` (where
images differ), ``gmacs``, ``top1``, ``delta_top1``, ``delta_top1_low``, ``delta_top1_high`` and ``throughput``, as in
:mod:`dynavit.report.table`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dynavit.errors import InputError
from dynavit.files import write_together
from dynavit.report.figures import Target, png, save_figure
from dynavit.report.rows import speed_columns
from dynavit.report.style import COLOURS, INK, finish, new_figure
from dynavit.report.table import aligned, batch_sizes, is_dense, metric_name, signed, significant, throughput
from dynavit.tables import csv_text

Row = Mapping[str, Any]

_NOTHING = "-"
_MARKERS = "osv^DPX*<>"


def format_methods(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned table, each budget under a line of its own.

    Raises:
        InputError: no row.

    Example:
        >>> print(format_methods([{"method": "dense", "model": "dense", "gmacs": 4.6, "top1": 79.85, "tokens": []}]))
        method  keep ratio  tokens left  GMACs  top-1  delta  95 % interval
        ------  ----------  -----------  -----  -----  -----  -------------
        dense            -            -   4.60  79.85      -              -
    """
    titles, *cells = _cells(rows)
    head, rule, *lines = aligned([titles, *cells]).splitlines()
    out = [head, rule]
    for row, line, begins in zip(rows, lines, _begins_budget(rows), strict=True):
        out += ["", _heading(row)] if begins else []
        out.append(line)
    return "\n".join(out)


def markdown_methods(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table.

    Raises:
        InputError: no row.
    """
    titles, *cells = _cells(rows)
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    for row, line, begins in zip(rows, cells, _begins_budget(rows), strict=True):
        lines += [[f"*{_heading(row)}*"] + [""] * (len(titles) - 1)] if begins else []
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_methods(rows: Sequence[Row], about: Mapping[str, Any], folder: Path) -> list[str]:
    """Write ``methods.json``, ``methods.csv``, ``methods.md`` and ``methods.png``; returns their names.

    Args:
        rows: see the head of this file.
        about: what was compared on what, one line each.
        folder: made if it is not there.

    Raises:
        InputError: no row, or a file cannot be written; then all that stood there before stays.
    """
    _require(rows)
    lines = [f"- {name.replace('_', ' ')}: {value}\n" for name, value in about.items()]
    files: dict[str, str | bytes] = {
        "methods.md": f"{markdown_methods(rows)}\n{''.join(lines)}",
        "methods.json": json.dumps({**about, "rows": list(rows)}, indent=2) + "\n",
        "methods.csv": csv_text([_flat(row) for row in rows]),
        "methods.png": png(partial(plot_methods, rows)),
    }
    write_together(folder, files)
    return list(files)


def plot_methods(rows: Sequence[Row], path: Target) -> None:
    """Draw accuracy against GMACs, one line a method, the best at the smallest budget first in the legend.

    Args:
        rows: see the head of this file.
        path: picture to write; its suffix is the format.

    Raises:
        InputError: no row.
    """
    _require(rows)
    figure = new_figure(7.6, 4.4)
    axes = figure.add_subplot()
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(str(row["method"]), []).append(row)
    cheapest = {name: min(points, key=_budget) for name, points in lines.items() if not is_dense(points[0])}
    names = sorted(cheapest, key=lambda name: (_budget(cheapest[name]), -cheapest[name]["top1"]))
    for number, name in enumerate(names):
        points = sorted(lines[name], key=lambda row: row["gmacs"])
        axes.plot(
            [row["gmacs"] for row in points],
            [row["top1"] for row in points],
            marker=_MARKERS[number % len(_MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            linestyle="-" if number < len(COLOURS) else "--",
            linewidth=1.5,
            markersize=5,
            label=name,
        )
    for row in rows:
        if is_dense(row):
            style: dict[str, Any] = {"color": "white", "markeredgecolor": INK, "markeredgewidth": 1.8, "zorder": 3}
            axes.plot(row["gmacs"], row["top1"], "D", markersize=8, label="dense", **style)
    axes.set_xlabel("GMACs per image, scoring included")
    axes.set_ylabel(f"{metric_name('top1')} (%)")
    finish(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    save_figure(figure, path)


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    _require(rows)
    sizes = batch_sizes(rows)
    titles = ["method", "keep ratio", "tokens left", "GMACs", metric_name("top1"), "delta", "95 % interval"]
    titles += [title for size in sizes for title in (f"images/s at {size}", "speedup")]
    lines = [titles]
    for row in rows:
        delta = row.get("delta_top1")
        line = [
            str(row["method"]),
            _NOTHING if row.get("keep_ratio") is None else f"{row['keep_ratio']:.3f}",
            _tokens_left(row),
            significant(row["gmacs"]),
            f"{row['top1']:.2f}",
            _NOTHING if delta is None else signed(delta, 2),
            _NOTHING if delta is None else " to ".join(signed(row[f"delta_top1_{end}"], 2) for end in ("low", "high")),
        ]
        for size in sizes:
            speed = throughput(row).get(size)
            line += [_NOTHING] * 2 if speed is None else _speed(speed)
        lines.append(line)
    return lines


def _tokens_left(row: Row) -> str:
    if not row.get("tokens"):
        return _NOTHING
    last = row["tokens"][-1]
    return f"{last:.1f} (p95 {row['tokens_p95']:.0f})" if "tokens_p95" in row else str(last)


def _speed(speed: Mapping[str, Any]) -> list[str]:
    return [significant(speed["images_per_second"]), f"{speed['speedup']:.2f}x"]


def _heading(row: Row) -> str:
    return f"as dropping at keep ratio {row['budget']:g}: {significant(row['budget_gmacs'])} GMACs"


def _begins_budget(rows: Sequence[Row]) -> list[bool]:
    """Tell which rows are the first of their budget."""
    budgets = [row.get("budget") for row in rows]
    return [budget is not None and budget not in budgets[:number] for number, budget in enumerate(budgets)]


def _flat(row: Row) -> dict[str, Any]:
    flat = {name: value for name, value in row.items() if isinstance(value, str | int | float) and name != "model"}
    flat["tokens"] = " ".join(f"{count:g}" for count in row["tokens"])
    return flat | speed_columns(row)


def _budget(row: Row) -> float:
    return float(row["budget"])


def _require(rows: Sequence[Row]) -> None:
    if not rows:
        raise InputError("there is no row to report.")
