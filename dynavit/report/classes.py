"""What pruning does to each class: tables, and which classes are taken for which."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dynavit.report.figures import Target, png, save_figure
from dynavit.report.html import Section
from dynavit.report.style import FAINT, INK, font_file, new_figure
from dynavit.report.table import Column, interval_column, signed
from dynavit.tables import Row
from dynavit.text import printable

_CHANCE = 0.05
_MOST = 20  # classes in a table of the page; all are in the file beside it
_PAIRS = 10
_NAMED = 5  # classes in a sentence
_DRAWN = 40  # classes at most in a picture of all confusions
_LETTERS = 18  # of a class's name in it
_COUNTED = 15  # classes at most for counts to be legible in it


@dataclass(frozen=True)
class Classes:
    """What a model gets right of each class, beside another.

    Attributes:
        names: of C classes, in the order of labels.
        rows: of those that have images; see :func:`dynavit.evaluation.classes.class_rows`.
        confusions: how many images of a class the model takes for a class, by the numbers of the two.
        model: what it is called.
        base: what the model is compared with is called; None if with nothing.
    """

    names: Sequence[str]
    rows: Sequence[Row]
    confusions: Mapping[tuple[int, int], int]
    model: str
    base: str | None = None

    def confusion_rows(self) -> list[Row]:
        """Return a row for each pair of classes of which images were taken for each other, right ones included."""
        return [
            {"class": self.names[true], "taken_for": self.names[said], "images": count}
            for (true, said), count in sorted(self.confusions.items())
        ]

    def summary(self) -> str:
        """Say which classes lose by pruning, beyond chance."""
        if self.base is None:
            return f"Classes of {self.model}, those told worst first."
        losing = [row for row in self.rows if row["delta_top1"] < 0 and row["p"] < _CHANCE]
        where = f"at {self.model} than by {self.base}, beyond chance (p below 5 %, each class by itself)"
        if not losing:
            return f"No class is told worse {where}."
        worst = ", ".join(f"{printable(row['class'])} ({signed(row['delta_top1'], 1)})" for row in losing[:_NAMED])
        more = f" and {len(losing) - _NAMED:,} more" if len(losing) > _NAMED else ""
        return f"{len(losing):,} of {len(self.rows):,} classes are told worse {where}, in points: {worst}{more}."


def class_sections(classes: Classes) -> list[Section]:
    """Return what a page says of classes."""
    count, note = len(classes.rows), classes.summary()
    if count > _MOST:
        note += f" These {_MOST} come first; all {count:,} are in classes.csv."
    images = {}
    if len(classes.names) <= _DRAWN:
        caption = f"What images of each class are taken for at {classes.model}, in percent of the class"
        images[caption] = png(partial(plot_confusions, classes))
    sections = [Section("Classes", class_columns(classes.rows[:_MOST], classes), note, images)]
    if pairs := _confused(classes):
        sections.append(Section("Most frequent confusions", pairs, f"At {classes.model}."))
    return sections


def class_columns(rows: Sequence[Row], classes: Classes) -> list[Column]:
    """Return the columns of a table of some of the classes."""
    columns = [
        Column("class", [printable(row["class"]) for row in rows], left=True),
        Column("images", [f"{row['images']:,}" for row in rows]),
    ]
    for name, title in (("base_top1", classes.base), ("top1", classes.model)):
        if title is not None:
            columns.append(Column("top-1", [f"{row[name]:.1f}" for row in rows], title))
            columns += interval_column(rows, name, lambda value: f"{value:.1f}", title)
    if classes.base is not None:
        columns.append(Column("points", [signed(row["delta_top1"], 1) for row in rows], "change"))
        columns.append(Column("p (%)", [f"{100 * row['p']:.0f}" for row in rows], "change"))
    return columns


def plot_confusions(classes: Classes, path: Target) -> None:
    """Draw the shares of each class's images that are taken for each class, one class a row."""
    from matplotlib.font_manager import FontProperties  # a large import, needed here alone

    count = len(classes.names)
    counts = np.zeros((count, count))
    for pair, images in classes.confusions.items():
        counts[pair] = images
    shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    size = 1.8 + 0.26 * max(count, 8)
    figure = new_figure(size, size)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    names = [_short(printable(name)) for name in classes.names]
    style: dict[str, Any] = {
        "fontproperties": FontProperties(fname=font_file("".join(names)), size=8),
        "color": INK,
        "parse_math": False,  # a dollar in a name is one
    }
    axes.set_xticks(range(count), names, rotation=90, **style)
    axes.set_yticks(range(count), names, **style)
    axes.set_xlabel("taken for", color=INK)
    axes.set_ylabel("class", color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_color(FAINT)
    if count <= _COUNTED:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 50 else INK
            label = f"{shares[row, column]:.0f}" if shares[row, column] >= 0.5 else "<1"
            axes.text(column, row, label, ha="center", va="center", fontsize=7.5, color=colour)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of signs that no font has
        save_figure(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"


def _confused(classes: Classes) -> list[Column]:
    """Return the columns of the pairs of classes that are confused most; none if all is right."""
    wrong = {pair: count for pair, count in sorted(classes.confusions.items()) if pair[0] != pair[1]}
    pairs = sorted(wrong, key=lambda pair: -wrong[pair])[:_PAIRS]
    images = {row["class"]: row["images"] for row in classes.rows}
    if not pairs:
        return []
    true, said = ([classes.names[pair[place]] for pair in pairs] for place in (0, 1))
    return [
        Column("class", [printable(name) for name in true], left=True),
        Column("taken for", [printable(name) for name in said], left=True),
        Column("images", [f"{wrong[pair]:,}" for pair in pairs]),
        Column("of", [f"{images[name]:,}" for name in true]),
    ]
