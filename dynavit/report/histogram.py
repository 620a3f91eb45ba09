"""How many tokens images keep, where each keeps its own number."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dynavit.errors import InputError
from dynavit.report.figures import Target, save_figure
from dynavit.report.rows import is_adaptive, ratio_text
from dynavit.report.style import COLOURS, INK, finish, new_figure
from dynavit.tables import Row


def plot_token_counts(rows: Sequence[Row], path: Target) -> None:
    """Draw for each adaptive row how many images keep how many tokens after the last stage, and their mean.

    Args:
        rows: see :mod:`dynavit.report.rows`.
        path: picture to write; its suffix is the format.

    Raises:
        InputError: no adaptive row.
    """
    rows = [row for row in rows if is_adaptive(row)]
    if not rows:
        raise InputError("there is nothing to draw: no row is adaptive.")
    figure = new_figure(2.4 * len(rows) + 0.4, 2.3)
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, row in zip(panels, rows, strict=True):
        edges, images = row["tokens_histogram"]["edges"], row["tokens_histogram"]["images"]
        widths = [high - low for low, high in pairwise(edges)]
        share = [100 * count / sum(images) for count in images]
        left = [edge - 0.5 for edge in edges[:-1]]  # a bar stands round its whole numbers
        axes.bar(left, share, widths, align="edge", color=COLOURS[0], edgecolor="white", linewidth=0.5)
        axes.axvline(row["tokens"][-1], color=INK, linestyle="--", linewidth=1)
        axes.set_title(f"keep ratio {ratio_text(row)}", fontsize=9)
        finish(axes, grid="y", size=8)
    panels[0].set_ylabel("images (%)", fontsize=9)
    figure.supxlabel("tokens after the last stage; dashed: mean", fontsize=9, color=INK)
    save_figure(figure, path)
