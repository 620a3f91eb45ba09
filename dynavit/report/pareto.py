"""Accuracy against cost and against measured speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dynavit.errors import InputError
from dynavit.report.figures import Target, save_figure
from dynavit.report.rows import (
    batch_sizes,
    has_smaller_images,
    is_adaptive,
    is_dense,
    is_pruned,
    is_rival,
    is_trained_rival,
    metric_name,
    ratio_text,
    require_rows,
    throughput,
)
from dynavit.report.style import COLOURS, INK, finish, new_figure
from dynavit.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST_SPAN = 4.0  # points of accuracy; less would make noise look like a result
_RIVALS_BELOW = 1.0  # so many times the span of the other rows may rivals lie below these
_LOG_FROM = 6.0  # times this many times apart are drawn on a logarithmic axis
_ALONE = 4.6  # inches of a panel by itself, whose letters are legible on a phone
_MARKERS = "osv^DPX*<>"


def plot_pareto(rows: Sequence[Row], path: Target, metric: str = "top1") -> None:
    """Draw accuracy against GMACs and, where rows were timed, against milliseconds per image.

    Args:
        rows: see :mod:`dynavit.report.rows`; those without the metric or ``gmacs`` are left out.
        path: picture to write; its suffix is the format.
        metric: the metric to draw, in percent.

    Raises:
        InputError: no row has the metric.
    """
    _plot(rows, path, metric, [_draw_cost, _draw_speed] if batch_sizes(rows) else [_draw_cost])


def plot_cost(rows: Sequence[Row], path: Target, metric: str = "top1") -> None:
    """Draw accuracy against GMACs alone, as :func:`plot_pareto`."""
    _plot(rows, path, metric, [_draw_cost])


def plot_speed(rows: Sequence[Row], path: Target, metric: str = "top1") -> None:
    """Draw accuracy against milliseconds per image alone, as :func:`plot_pareto`; some row was timed."""
    _plot(rows, path, metric, [_draw_speed])


def _plot(rows: Sequence[Row], path: Target, metric: str, panels: Sequence[Callable[..., None]]) -> None:
    """Draw panels beside each other, all of one height and scale."""
    rows = [row for row in rows if row.get(metric) is not None and row.get("gmacs") is not None]
    if not rows:
        raise InputError(f"there is nothing to draw: no row has both {metric!r} and 'gmacs'.")
    figure = new_figure(5.4 * len(panels) if len(panels) > 1 else _ALONE, 4.2)
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, draw in zip(every, panels, strict=True):
        draw(axes, rows, metric)
        axes.tick_params(labelleft=True)
    _cut_off(every[0], [row[metric] for row in rows if not is_rival(row)])
    save_figure(figure, path)


def _draw_cost(cost: Axes, rows: Sequence[Row], metric: str) -> None:
    points = [(row["gmacs"], row) for row in rows]
    _draw(cost, points, metric, INK)
    for x, row in points:
        if is_dense(row):
            best = row[metric] >= max(other[metric] for other in rows)
            offset, side = ((0, 9), "bottom") if best else ((0, -9), "top")
            _write(cost, "dense", (x, row[metric]), offset, ha="center", va=side, weight="bold")
        elif is_rival(row):
            _write(cost, _rival_label(row), (x, row[metric]), (6, -3), va="top", alpha=0.75)
        elif not is_adaptive(row):  # the curve falls to the left: below it and to the right is room
            _write(cost, ratio_text(row), (x, row[metric]), (5, -4), va="top")
    _label(cost, "GMACs per image", metric)
    legend = {is_pruned: "pruned", is_adaptive: "as many tokens as each image needs"}
    legend |= {has_smaller_images: "dense, smaller images (px)", is_trained_rival: "other models"}
    shown = [kind for kind in legend if any(kind(row) for row in rows)]
    if len(shown) > 1:
        for kind in shown:
            cost.plot([], [], label=legend[kind], **_STYLES[kind](INK))
        cost.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=9)


def _draw_speed(speed: Axes, rows: Sequence[Row], metric: str) -> None:
    sizes = batch_sizes(rows)
    fastest: dict[int, tuple[float, Row]] = {}
    for number, size in enumerate(sizes):
        points = [(_milliseconds(row, size), row) for row in rows if size in throughput(row)]
        _draw(speed, points, metric, COLOURS[number % len(COLOURS)], f"batch {size}")
        for x, row in points:
            fastest[id(row)] = min(fastest.get(id(row), (x, row)), (x, row), key=lambda point: point[0])
    for x, row in fastest.values():  # a row has one height, so one label serves all batch sizes
        if is_rival(row):
            _write(speed, _rival_label(row), (x, row[metric]), (6, -3), va="top", alpha=0.75)
        elif ratio_text(row) == "1.0":  # beside the dense model's diamond
            _write(speed, "1.0", (x, row[metric]), (5, -6), va="top")
        elif not (is_dense(row) or is_adaptive(row)):
            _write(speed, ratio_text(row), (x, row[metric]), (-5, 3), va="bottom", ha="right")
    if any(is_dense(row) for _, row in fastest.values()):
        speed.plot([], [], label="dense", **_diamond(INK))
    times = [_milliseconds(row, size) for row in rows for size in throughput(row)]
    if max(times) > _LOG_FROM * min(times):
        _use_log_scale(speed)
    _label(speed, "milliseconds per image", metric)
    speed.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(sizes) + 1,
        frameon=False,
        fontsize=9,
        columnspacing=1.4,
        handletextpad=0.5,
    )


def plot_methods(rows: Sequence[Row], path: Target, metric: str = "top1") -> None:
    """Draw accuracy against GMACs, one line a method, the best at the smallest budget first in the legend.

    Args:
        rows: see :mod:`dynavit.report.rows`; all have the metric.
        path: picture to write; its suffix is the format.
        metric: the metric to draw, in percent.

    Raises:
        InputError: no row.
    """
    require_rows(rows)
    figure = new_figure(7.6, 4.4)
    axes = figure.add_subplot()
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if not is_dense(row):
            lines.setdefault(str(row["method"]), []).append(row)
    cheapest = {name: min(points, key=lambda row: float(row["budget_gmacs"])) for name, points in lines.items()}
    names = sorted(lines, key=lambda name: (cheapest[name]["budget_gmacs"], -cheapest[name][metric]))
    for number, name in enumerate(names):
        points = sorted(lines[name], key=lambda row: float(row["gmacs"]))
        axes.plot(
            [row["gmacs"] for row in points],
            [row[metric] for row in points],
            marker=_MARKERS[number % len(_MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            linestyle="-" if number < len(COLOURS) else "--",
            linewidth=1.5,
            markersize=5,
            label=name,
        )
    for row in rows:
        if is_dense(row):
            axes.plot(row["gmacs"], row[metric], label="dense", **_diamond(INK))
    axes.set_xlabel("GMACs per image, scoring included")
    axes.set_ylabel(f"{metric_name(metric)} (%)")
    finish(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    save_figure(figure, path)


def _draw(axes: Axes, points: Sequence[tuple[float, Row]], metric: str, colour: str, label: str | None = None) -> None:
    """Draw rows of each kind in its style; each point is ``(x, row)``."""
    for kind, style in _STYLES.items():
        line = sorted(((x, row[metric]) for x, row in points if kind(row)), key=lambda point: point[0])
        if line or kind is is_pruned:
            xs, ys = [x for x, _ in line], [y for _, y in line]
            axes.plot(xs, ys, label=label if kind is is_pruned else None, **style(colour))


def _milliseconds(row: Row, batch_size: int) -> float:
    return 1e3 / float(throughput(row)[batch_size]["images_per_second"])


def _rival_label(row: Row) -> str:
    return str(row["image_size"][0]) if has_smaller_images(row) else str(row["rival"])


def _line(colour: str) -> dict[str, Any]:
    return {"color": colour, "marker": "o", "markersize": 5, "linewidth": 1.6}


def _dashed(colour: str) -> dict[str, Any]:
    return _line(colour) | {"linestyle": "--", "markerfacecolor": "white"}


def _dotted(colour: str) -> dict[str, Any]:
    return _line(colour) | {"linestyle": ":", "linewidth": 1.2, "marker": "s", "markerfacecolor": "white"}


def _squares(colour: str) -> dict[str, Any]:
    return _line(colour) | {"linestyle": "none", "marker": "s"}


def _diamond(colour: str) -> dict[str, Any]:
    edge = {"markeredgecolor": colour, "markeredgewidth": 1.8}
    return {"marker": "D", "markersize": 8, "color": "white", "linestyle": "none", "zorder": 3, **edge}


_STYLES: dict[Callable[[Row], bool], Callable[[str], dict[str, Any]]] = {
    is_pruned: _line,
    is_adaptive: _dashed,
    has_smaller_images: _dotted,
    is_trained_rival: _squares,
    is_dense: _diamond,
}


def _write(axes: Axes, text: str, point: tuple[float, float], offset: tuple[int, int], **style: Any) -> None:
    axes.annotate(text, point, xytext=offset, textcoords="offset points", fontsize=8.5, color=INK, **style)


def _label(axes: Axes, x_label: str, metric: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(f"{metric_name(metric)} (%)")
    axes.margins(x=0.12, y=0.16)
    low, high = axes.get_ylim()
    if high - low < _LEAST_SPAN:
        middle = (low + high) / 2
        axes.set_ylim(middle - _LEAST_SPAN / 2, middle + _LEAST_SPAN / 2)
    finish(axes)


def _cut_off(axes: Axes, values: Sequence[float]) -> None:
    """Let rivals that are far behind fall out of the picture, where what is compared with them would be flattened."""
    low, high = axes.get_ylim()
    span = max(max(values) - min(values), _LEAST_SPAN)
    axes.set_ylim(max(low, min(values) - _RIVALS_BELOW * span), high)


def _use_log_scale(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
