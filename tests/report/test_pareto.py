import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

import dynavit.report
from dynavit import InputError
from dynavit.report import plot_pareto

SPEED = {"1": {"images_per_second": 10.0, "speedup": 1.0}, "8": {"images_per_second": 14.0, "speedup": 1.0}}
ROWS: list[dict[str, Any]] = [
    {"model": "dense", "keep_ratio": 1.0, "gmacs": 4.6, "top1": 80.0, "throughput": SPEED},
    {"model": "pruned", "keep_ratio": 1.0, "gmacs": 4.6, "top1": 79.9, "throughput": SPEED},
    {"model": "pruned", "keep_ratio": 0.5, "gmacs": 2.2, "top1": 77.0, "throughput": {"8": SPEED["8"]}},
    {"model": "pruned", "keep_ratio": 0.7, "gmacs": 3.0, "top1": 79.5, "throughput": {}},
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they were when they were saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_panels_points_and_labels(tmp_path: Path, figures: list[Figure]) -> None:
    plot_pareto(ROWS, tmp_path / "pareto.png")
    assert Image.open(tmp_path / "pareto.png").format == "PNG"
    cost, speed = figures[0].axes
    curve, diamond = cost.lines
    assert curve.get_xydata().tolist() == [[2.2, 77.0], [3.0, 79.5], [4.6, 79.9]]  # along the x axis
    assert diamond.get_xydata().tolist() == [[4.6, 80.0]]
    assert diamond.get_marker() == "D" != curve.get_marker()
    assert sorted(texts(cost)) == ["0.5", "0.7", "1.0", "dense"]
    assert cost.get_xlabel() == "GMACs per image"
    assert cost.get_ylabel() == "top-1 (%)"

    legend = speed.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["batch 1", "batch 8", "dense"]
    assert sorted(texts(speed)) == ["0.5", "1.0"]  # once, though 1.0 was timed at two batch sizes
    assert speed.get_xscale() == "linear"
    points = {tuple(xy) for line in speed.lines for xy in line.get_xydata().tolist()}
    slow, fast = 1e3 / 10.0, 1e3 / 14.0
    assert points == {(slow, 80.0), (fast, 80.0), (slow, 79.9), (fast, 79.9), (fast, 77.0)}
    assert speed.get_xlabel() == "milliseconds per image"


def test_one_row_without_speed_and_another_metric(tmp_path: Path, figures: list[Figure]) -> None:
    plot_pareto([{"model": "pruned", "keep_ratio": 0.7, "gmacs": 0.04, "map": 61.2}], tmp_path / "p.png", metric="map")
    (cost,) = figures[0].axes
    assert texts(cost) == ["0.7"]
    assert cost.get_ylabel() == "mAP (%)"
    plot_pareto(ROWS[:1], tmp_path / "dense.pdf")
    assert (tmp_path / "dense.pdf").read_bytes().startswith(b"%PDF")


def test_speeds_far_apart_get_a_logarithmic_axis(tmp_path: Path, figures: list[Figure]) -> None:
    far = {"1": SPEED["1"], "256": {"images_per_second": 2000.0, "speedup": 1.0}}
    plot_pareto([{**ROWS[0], "throughput": far}], tmp_path / "p.png")
    assert figures[0].axes[1].get_xscale() == "log"


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row has both 'map'"):
        plot_pareto(ROWS, tmp_path / "p.png", metric="map")
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_imported_late(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it is an error
    for module in ("table", "pareto", "tokens", "html"):
        importlib.reload(importlib.import_module(f"dynavit.report.{module}"))
    importlib.reload(dynavit.report)


def test_no_global_state_of_pyplot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    plot_pareto(ROWS, tmp_path / "p.png")


def test_adaptive_rows_are_a_line_of_their_own(tmp_path: Path, figures: list[Figure]) -> None:
    adaptive = [
        {"model": "adaptive", "keep_ratio": 0.7, "gmacs": 3.1, "top1": 79.8, "throughput": {"8": SPEED["8"]}},
        {"model": "adaptive", "keep_ratio": 0.5, "gmacs": 2.3, "top1": 77.9, "throughput": {"8": SPEED["8"]}},
    ]
    plot_pareto([*ROWS, *adaptive], tmp_path / "pareto.png")
    cost, speed = figures[0].axes
    curve, twin, diamond, *_ = cost.lines
    assert curve.get_xydata().tolist() == [[2.2, 77.0], [3.0, 79.5], [4.6, 79.9]]
    assert twin.get_xydata().tolist() == [[2.3, 77.9], [3.1, 79.8]]
    assert (curve.get_linestyle(), twin.get_linestyle()) == ("-", "--")
    assert diamond.get_marker() == "D"
    assert sorted(texts(cost)) == ["0.5", "0.7", "1.0", "dense"]  # beside the points of their ratio
    legend = cost.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 2
    assert [text.get_text() for text in speed.get_legend().get_texts()] == ["batch 1", "batch 8", "dense"]
    plot_pareto(ROWS, tmp_path / "pareto.png")
    assert figures[1].axes[0].get_legend() is None


def test_rivals_have_lines_of_their_own_and_fall_out_of_the_picture(tmp_path: Path, figures: list[Figure]) -> None:
    sizes = [
        {"model": "rival", "rival": f"dense, {size} px", "image_size": [size, size], "keep_ratio": 1.0, "gmacs": gmacs}
        for size, gmacs in ((160, 2.4), (192, 3.4))
    ]
    other = {"model": "rival", "rival": "tiny", "rival_run": "runs/tiny", "image_size": [224, 224], "gmacs": 1.3}
    rows = [*ROWS, *(one | {"top1": top1} for one, top1 in zip(sizes, (30.0, 78.0), strict=True)), other | {"top1": 76}]
    plot_pareto([row | {"throughput": {}} for row in rows], tmp_path / "pareto.png")
    (cost,) = figures[0].axes
    lines = [line.get_xydata().tolist() for line in cost.lines]
    assert [[2.4, 30.0], [3.4, 78.0]] in lines
    assert [[1.3, 76.0]] in lines
    assert {"160", "192", "tiny"} <= set(texts(cost))
    assert 70 < cost.get_ylim()[0] < 76  # 77 minus the span of what is no rival, 4 points at least
    labels = [text.get_text() for text in cost.get_legend().get_texts()]
    assert labels == ["pruned", "dense, smaller images (px)", "other models"]
