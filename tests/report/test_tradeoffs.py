"""What speed costs by pruning and by smaller images: interpolation by hand, and advice that follows the numbers."""

from __future__ import annotations

from typing import Any

from dynavit.report.tradeoffs import Curve, advice, curves, price_columns
from dynavit.tables import Row


def row(model: str, speedup: float, top1: float | None, **others: Any) -> Row:
    throughput = {"8": {"images_per_second": 100 * speedup, "speedup": speedup}}
    return {"model": model, "top1": top1, "throughput": throughput, **others}


def rival(height: int, speedup: float, top1: float) -> Row:
    return row("rival", speedup, top1, rival=f"dense, {height} px", image_size=[height, height])


DENSE = row("dense", 1.0, 80.0)
PRUNED = [row("pruned", 1.4, 79.6, keep_ratio=0.7), row("pruned", 2.2, 78.0, keep_ratio=0.5)]
SMALLER = [rival(192, 1.5, 79.0), rival(160, 2.5, 78.5)]


def test_a_curve_is_straight_between_points_and_ends_where_they_end() -> None:
    curve = Curve([(1.0, 80.0), (2.0, 78.0), (2.0, 77.0), (3.0, 75.0)])
    assert [curve.at(speed) for speed in (1.0, 1.25, 2.0, 2.5, 3.0)] == [80.0, 79.5, 78.0, 76.0, 75.0]
    assert curve.at(0.9) is None
    assert curve.at(3.1) is None
    assert Curve([]).at(1.0) is None


def test_prices_are_points_below_the_dense_model() -> None:
    columns = price_columns([DENSE, *PRUNED, *SMALLER])
    assert [column.title for column in columns] == ["way", "1.5x", "2x"]
    assert columns[0].cells == ["pruned", "smaller images"]
    # 79.6 - 1.6 / 8 = 79.4 and 79.6 - 6 * 1.6 / 8 = 78.4; 79.0 and 78.75
    assert columns[1].cells == ["~-0.6", "~-1.0"]
    assert columns[2].cells == ["~-1.6", "~-1.2"]
    assert columns[1].group == "batch 8"


def test_what_was_not_measured_has_no_price() -> None:
    assert price_columns([DENSE]) == []
    assert price_columns([{"model": "dense", "top1": 80.0}, {"model": "pruned", "top1": 79.0}]) == []
    (way, first, second) = price_columns([DENSE, PRUNED[0]])
    assert (way.cells, first.cells, second.cells) == (["pruned"], ["-"], ["-"])


def test_other_models_are_no_point_of_a_curve() -> None:
    other = rival(224, 1.7, 70.0) | {"rival_run": "runs/tiny"}
    assert curves([DENSE, *SMALLER, other], "top1", 8) == curves([DENSE, *SMALLER], "top1", 8)


def test_a_dense_model_of_other_classes_begins_no_curve() -> None:
    whole = row("pruned", 1.0, 79.0, keep_ratio=1.0)
    rows = [row("dense", 1.0, None), whole, PRUNED[1], *SMALLER]
    assert curves(rows, "top1", 8)["smaller images"].points == [(1.5, 79.0), (2.5, 78.5)]
    assert price_columns(rows)[2].cells == [f"~{78.0 + 0.2 / 1.2 - 79.0:.1f}", "~-0.2"]


def test_advice_names_the_ratios_at_which_smaller_images_win() -> None:
    (line,) = advice([DENSE, *PRUNED, *SMALLER])
    # at 1.4x smaller images have 80 - 0.8 = 79.2, at 2.2x 79 - 0.35 = 78.65
    assert "at the speed of keep ratio 0.5 (by 0.7 points) the dense model" in line
    (line,) = advice([DENSE, PRUNED[0], *SMALLER])
    assert line.startswith("Batch 8: at equal speed pruning has 0.4 points top-1 more")
    assert advice([DENSE, *PRUNED]) == []
    assert advice([DENSE, row("pruned", 3.0, 70.0, keep_ratio=0.3), *SMALLER]) == []


def test_where_no_ratio_is_faster_that_is_said() -> None:
    slower = [row("pruned", 1.0, 80.0, keep_ratio=1.0), row("pruned", 0.8, 79.0, keep_ratio=0.7)]
    (line,) = advice([DENSE, *slower, *SMALLER])
    assert line == "Batch 8: no keep ratio is faster than the dense model; smaller images are, 2.50x."
    assert advice([DENSE, *slower]) == []
    assert advice([DENSE, slower[0], *PRUNED, *SMALLER]) == advice([DENSE, *PRUNED, *SMALLER])


def test_adaptive_rows_are_a_way_of_their_own() -> None:
    rows = [DENSE, *PRUNED, *SMALLER]
    twin = row("adaptive", 2.0, 79.0, keep_ratio=0.6)
    assert [*curves([*rows, twin], "top1", 8)] == ["pruned", "adaptive", "smaller images"]
    assert advice([*rows, twin]) == advice(rows)
