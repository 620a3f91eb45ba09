"""What a benchmark measured, as a figure."""

from __future__ import annotations

from collections.abc import Sequence

from dynavit.report.figures import Target, save_figure
from dynavit.report.style import COLOURS, INK, QUIET, finish, new_figure
from dynavit.tables import Row

_NAMES = ("backbone", "method", "run", "keep_ratio", "dtype", "mode", "image_size", "threads", "batch_size")
_WORDS = {"keep_ratio": "keep {}", "image_size": "{} px", "threads": "{} threads", "batch_size": "batch {}"}


def plot_speedups(rows: Sequence[Row], path: Target) -> None:
    """Draw speedups over the dense model as bars with their ranges, the first on top, and the oracle's as marks.

    Args:
        rows: of :func:`dynavit.evaluation.benchmark.benchmark_models`.
        path: picture to write; its suffix is the format.
    """
    differing = [name for name in _NAMES if name == "batch_size" or len({row.get(name) for row in rows}) > 1]
    names = [
        ", ".join(_WORDS.get(name, "{}").format(row[name]) for name in differing if row.get(name) is not None)
        for row in rows
    ]
    figure = new_figure(7.6, 1.1 + 0.27 * len(rows))
    axes = figure.add_subplot()
    places = range(len(rows), 0, -1)
    colours = [COLOURS[0] if "keep_ratio" in row else QUIET for row in rows]
    speedups = [row["speedup"] for row in rows]
    ranges = [[median - low for median, low, _ in speedups], [high - median for median, _, high in speedups]]
    axes.barh(places, [median for median, _, _ in speedups], color=colours, height=0.62)
    axes.errorbar([median for median, _, _ in speedups], places, xerr=ranges, fmt="none", ecolor=INK, elinewidth=1)
    bound = [(row["oracle_speedup"][0], place) for row, place in zip(rows, places, strict=True) if "share" in row]
    if bound:
        shares, where = zip(*bound, strict=True)
        axes.scatter(shares, where, marker="|", s=90, color=COLOURS[1], zorder=3, label="oracle")
        axes.legend(loc="lower right", fontsize=8.5, frameon=False)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_yticks(places, names)
    axes.set_xlabel("times as fast as the dense model", color=INK)
    finish(axes)
    save_figure(figure, path)
