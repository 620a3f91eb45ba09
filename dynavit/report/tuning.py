"""How far ways to be faster agree with the dense model."""

from __future__ import annotations

from collections.abc import Sequence

from dynavit.report.figures import Target, save_figure
from dynavit.report.style import COLOURS, INK, QUIET, finish, new_figure
from dynavit.tables import Row


def plot_tuning(rows: Sequence[Row], path: Target) -> None:
    """Draw agreement with the dense model as points, the best on top, with each one's measured time.

    Args:
        rows: of :func:`dynavit.evaluation.tuning.tune_model`, the dense one first.
        path: picture to write; its suffix is the format.
    """
    measure, label = (
        ("same_top1", "images given the same class (%)") if "same_top1" in rows[0] else ("cosine", "cosine")
    )
    shown = list(reversed(rows[1:]))
    figure = new_figure(7.6, 1.1 + 0.3 * len(shown))
    axes = figure.add_subplot()
    values = [row[measure] for row in shown]
    names = [row["setting"] for row in shown]
    colours = [QUIET if row["keep_ratio"] is None else COLOURS[0] for row in shown]
    axes.scatter(values, names, color=colours, s=42, zorder=3)
    span = max(rows[0][measure] - min(values), 0.02 * rows[0][measure])
    axes.set_xlim(min(values) - 0.15 * span, rows[0][measure] + 0.25 * span)
    for place, row in enumerate(shown):
        text = f"{row['ms']:.3g} ms, {row['speedup'][0]:.2f}x"
        axes.annotate(
            text,
            (row[measure], place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    axes.set_xlabel(f"{label}; dense: {rows[0]['ms']:.3g} ms an image", color=INK)
    finish(axes)
    save_figure(figure, path)
