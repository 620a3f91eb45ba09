"""How long each way of training takes to an accuracy."""

import re
from pathlib import Path

import pytest

from studies import wall_clock
from studies.reproduce import main
from studies.wall_clock import STEPS, WAYS, measure_steps, table


def test_the_table_says_when_a_target_is_reached_in_the_mean_of_the_seeds() -> None:
    first, second, third, *_ = WAYS
    curves = {first: [[60.0], [70.0]], second: [[80.0, 91.0, 90.0], [70.0, 89.0, 94.0]], third: [[10.0] * 3] * 2}
    times = {"machine": "this one", "seconds": {first: [1.0] * 7, second: [0.5] * 7, third: [0.25] * 7}}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(curves, [64, 91], times).splitlines()]
    each = STEPS // 3  # between two looks
    assert lines[2:5] == [
        [first, "65.00", "60.00 to 70.00", "1.00x [1.00, 1.00]", f"{STEPS} s ({STEPS} steps)", "never"],
        [second, "92.00", "90.00 to 94.00", "0.50x [0.50, 0.50]", f"{each * 0.5:.0f} s ({each} steps)",
         f"{STEPS * 0.5:.0f} s ({STEPS} steps)"],
        [third, "10.00", "10.00 to 10.00", "0.25x [0.25, 0.25]", "never", "never"],
    ]  # fmt: skip
    assert len(table(curves, [64], None).splitlines()[0].split("|")) == 5  # without times none of them


@pytest.mark.slow
def test_ways_are_trained_once_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wall_clock, "STEPS", 2)
    monkeypatch.setattr(wall_clock, "LOOKS", 1)
    monkeypatch.setattr(wall_clock, "ROUNDS", 1)
    tiny = {"data.options": {"validation_size": 16}, "data.batch_size": 4, "data.workers": 0}
    some = {way: (name, more | tiny) for way, (name, more) in [*WAYS.items()][:3:2]}
    monkeypatch.setattr(wall_clock, "WAYS", some)
    measure_steps(0.3, tmp_path)
    arguments = ["wall-clock", "--seeds", "0", "--workers", "1", "--targets", "1", "--output", str(tmp_path)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"\| {re.escape(way)} +\|", shown) for way in some)
    states = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/model.safetensors")}
    assert len(states) == len(some)
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in states} == states
