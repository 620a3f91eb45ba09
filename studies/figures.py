"""Pictures of both studies, readable at the width of a README column and without colour vision."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from dynavit.report.figures import Target, save_figure
from dynavit.report.style import finish, new_figure
from studies.selection import SelectionRow
from studies.stability import StabilityRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# the colours of other figures, but not the pale ones, in which labels are hard to read
_COLOURS = ("#000000", "#D55E00", "#0072B2", "#CC79A7", "#009E73", "#B8860B", "#57606a")
_DASHES = ("-", "-", "-", "-", (0, (5, 4)), (4, (2, 4)), "-")
_CURVES = {
    "control": "control: no mask gradient",
    "attempt1": "attempt 1: Gumbel, STE, 1e10",
    "attempt2": "attempt 2: τ = 5, noise clipped",
    "no_noise_1e10": "attempt 1 without noise",
    "fix_log": "attempt 1 with log(m)",
    "fix_multiply": "attempt 1, multiplied by m",
}
_SPECTRA = {
    "spectra_control": "no mask gradient",
    "spectra_1e10": "as ported: 1e10",
    "spectra_guided": "guided, log(m)",
}
_SMOOTHING = 9  # steps
_LABEL_GAP = 0.062  # of the height
_KINDS = {"library": ("#0072B2", "o"), "control": ("#000000", "s"), "known bad": ("#D55E00", "X")}


def plot_stability(rows: Sequence[StabilityRow], path: Target) -> None:
    """Draw the training loss of the runs after the backbone: the middle seed, and the range of all.

    Args:
        rows: those that tell the story are drawn; the first seven, if none of them is there.
        path: picture to write.
    """
    chosen = [row for row in rows if row.variant in _CURVES] or list(rows[: len(_COLOURS)])
    figure = new_figure(8.2, 4.2)
    axes = figure.add_subplot()
    ends = []
    for row, colour, dash in zip(chosen, _COLOURS, _DASHES, strict=False):
        end = _draw_runs(axes, [run.losses for run in row.runs], colour, linestyle=dash)
        ends.append((end, _CURVES.get(row.variant, row.variant), colour))
    _scale_losses(axes)
    axes.set_xlim(0, max(len(run.losses) for row in chosen for run in row.runs) - 1)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("training loss")
    _label_ends(axes, ends)
    finish(axes)
    save_figure(figure, path)


def plot_spectra(rows: Sequence[StabilityRow], path: Target) -> None:
    """Draw training loss and the backbone's gradient norm of the runs with three spectra, middle seed and range.

    Args:
        rows: those are drawn.
        path: picture to write.
    """
    chosen = [row for row in rows if row.place == "spectra"]
    figure = new_figure(8.2, 3.6)
    panels = figure.subplots(1, 2)
    for axes, title in zip(panels, ("training loss", "gradient norm of the backbone"), strict=True):
        for row, colour in zip(chosen, _COLOURS, strict=False):
            runs = [run.losses if axes is panels[0] else run.backbone_gradients for run in row.runs]
            _draw_runs(axes, runs, colour, label=_SPECTRA.get(row.variant, row.variant))
        axes.set_yscale("log")
        axes.set_xlabel("optimiser step")
        axes.set_title(title, fontsize=10)
        finish(axes)
    _scale_losses(panels[0])
    panels[0].legend(frameon=False, fontsize=9)
    save_figure(figure, path)


def plot_selection(rows: Sequence[SelectionRow], path: Target) -> None:
    """Draw each row's accuracy, mean and range over the seeds, best on top.

    Args:
        rows: all are drawn.
        path: picture to write.
    """
    ordered = sorted(rows, key=lambda row: row.accuracy.mean)
    figure = new_figure(7.2, 0.9 + 0.25 * len(ordered))
    axes = figure.add_subplot()
    for height, row in enumerate(ordered):
        colour, marker = _KINDS[row.kind]
        axes.plot([100 * row.accuracy.low, 100 * row.accuracy.high], [height, height], color=colour, linewidth=2)
        axes.plot(100 * row.accuracy.mean, height, marker, color=colour, markersize=6.5)
    axes.set_yticks(range(len(ordered)), [row.variant for row in ordered])
    for kind, (colour, marker) in _KINDS.items():
        if any(row.kind == kind for row in ordered):
            axes.plot([], [], marker, color=colour, label=kind)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.set_xlabel("accuracy (%), mean and range over the seeds")
    axes.margins(y=0.03)
    finish(axes)
    save_figure(figure, path)


def _draw_runs(axes: Axes, runs: Sequence[Sequence[float]], colour: str, **line: Any) -> float:
    """Draw the middle one of smoothed runs and the range of all; return where it ends."""
    steps = min(map(len, runs))
    curves = [_smooth(run[:steps]) for run in runs]
    middle = [median(values) for values in zip(*curves, strict=True)]
    low, high = (list(map(extreme, zip(*curves, strict=True))) for extreme in (min, max))
    axes.fill_between(range(steps), low, high, color=colour, alpha=0.1, linewidth=0)
    axes.plot(range(steps), middle, color=colour, linewidth=1.9, **line)
    return float(middle[-1])


def _scale_losses(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_yticks([2, 5, 10, 20, 40], ["2", "5", "10", "20", "40"])
    axes.minorticks_off()


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each curve's name at its right end; names that would touch are moved apart."""
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = sorted((float(to_axes.transform((1.0, value))[1]), text, colour) for value, text, colour in ends)
    heights: list[float] = []
    for height, _, _ in wanted:
        heights.append(max(height, heights[-1] + _LABEL_GAP) if heights else height)
    excess = max(heights[-1] - 1.0, 0.0)  # the stack ends inside the axes
    for height, (_, text, colour) in zip(heights, wanted, strict=True):
        place = (1.015, height - excess)
        axes.annotate(text, place, xycoords="axes fraction", va="center", fontsize=9, color=colour)


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean of the last few steps."""
    windows = [values[max(end - _SMOOTHING, 0) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]
