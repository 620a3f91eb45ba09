"""How many tokens images keep, as a figure."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from dynavit import InputError
from dynavit.report import plot_token_counts


def row(ratio: float, images: list[int], first: int, mean: float) -> dict[str, Any]:
    edges = [first + 2 * number for number in range(11)]
    return {
        "model": "adaptive",
        "keep_ratio": ratio,
        "tokens": [30.0, mean],
        "tokens_histogram": {"edges": edges, "images": images},
    }


ROWS = [
    {"model": "dense"},
    {"model": "pruned", "keep_ratio": 0.7, "tokens": [44, 21]},
    row(0.7, [0, 1, 3, 0, 0, 0, 0, 0, 0, 4], 10, 21.5),
    row(0.5, [8, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1, 1.0),
]


def test_a_panel_for_each_adaptive_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: saved.append(self) or save(self, path))
    plot_token_counts(ROWS, tmp_path / "counts.png")
    assert Image.open(tmp_path / "counts.png").format == "PNG"
    panels = saved[0].axes
    assert [axes.get_title() for axes in panels] == ["keep ratio 0.7", "keep ratio 0.5"]
    heights = [bar.get_height() for bar in panels[0].patches]
    assert heights == [0, 12.5, 37.5, 0, 0, 0, 0, 0, 0, 50]  # percent
    left, right = panels[0].patches[1].get_x(), panels[0].patches[2].get_x()
    assert (left, right) == (11.5, 13.5)  # round the two counts 12 and 13
    assert [line.get_xdata()[0] for axes in panels for line in axes.lines] == [21.5, 1.0]


def test_without_adaptive_rows_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row is adaptive"):
        plot_token_counts(ROWS[:2], tmp_path / "counts.png")
