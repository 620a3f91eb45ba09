"""Training losses of several runs in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynavit.errors import InputError
from dynavit.report.figures import Target, save_figure
from dynavit.report.rows import metric_name
from dynavit.report.style import COLOURS, finish, new_figure

_STYLES = ("-", "--", "-.", ":")


def plot_losses(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Target, metric: str) -> None:
    """Draw each run's mean training loss of every epoch, and its validation metric.

    Args:
        runs: by name, the rows of their ``metrics.jsonl``.
        path: picture to write; its suffix is the format.
        metric: validation metric, in percent, such as ``top1``.

    Raises:
        InputError: a run without a complete epoch.
    """
    from matplotlib.ticker import MaxNLocator  # a large import, needed here alone

    for name, rows in runs.items():
        if not rows:
            raise InputError(f"{name} has no complete epoch yet: there is nothing to draw.")
    figure = new_figure(9.6, 3.6)
    for place, key, label in ((1, "train/loss", "training loss"), (2, f"val/{metric}", f"{metric_name(metric)} (%)")):
        axes = figure.add_subplot(1, 2, place)
        for number, (name, rows) in enumerate(runs.items()):
            axes.plot(
                [row["epoch"] for row in rows],
                [row[key] for row in rows],
                label=name,
                linewidth=1.8,
                color=COLOURS[number % len(COLOURS)],
                linestyle=_STYLES[number % len(_STYLES)],
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        finish(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[0].legend(frameon=False, fontsize=9)
    save_figure(figure, path)
