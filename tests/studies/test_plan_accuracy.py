"""How far off what is planned is."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from dynavit.cost.macs import tokens_per_stage
from studies import plan_accuracy, quiet
from studies.plan_accuracy import CONFIGURATIONS, random_configurations, table
from studies.reproduce import main

MODEL = "test_vit"
BLOCK, STAGE, REST = 1e-3, 3e-3, 7e-3  # seconds: of a patch in a block, of a stage, of what is around the blocks


def test_configurations_differ_and_can_be_made() -> None:
    drawn = random_configurations(12, seed=0)
    assert len(drawn) == CONFIGURATIONS
    assert drawn == random_configurations(12, seed=0)
    assert drawn != random_configurations(12, seed=1)
    for kept in drawn:
        ratios = [*kept.values()]
        assert list(kept) == sorted(kept)
        assert ratios == sorted(ratios, reverse=True)
        assert all(0.2 <= ratio <= 0.95 for ratio in ratios)
    assert {len(kept) for kept in drawn} == {1, 2, 3, 4}


def test_times_that_are_sums_of_parts_are_foretold_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = 1.0  # of whole models than of their parts

    def whole(model: Any) -> float:
        left, stages, seconds = 100, iter(tokens_per_stage(model)), REST
        for number in range(model.adapter.depth):
            if number in model.stages:
                left, seconds = next(stages), seconds + STAGE
            seconds += BLOCK * left
        return seconds * slower

    def taken(name: str, call: Callable[[], object]) -> float:
        if isinstance(call, partial) and isinstance(call.func, nn.Module):
            return whole(call.func)
        kind, _, count = name.partition(" ")
        return {"blocks": lambda: 6 * BLOCK * int(count), "stage": lambda: STAGE, "rest": lambda: REST}[kind]()

    def fake(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        return {name: [taken(name, call)] * rounds for name, call in calls.items()}

    monkeypatch.setattr(plan_accuracy, "measure", fake)
    monkeypatch.setattr(quiet.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    words = ["plan", "--backbone", MODEL, "--batch-sizes", "2", "--output", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "of 20, 20 foretold within 7 % of what was measured, the median 0.0 % off" in said
    slower = 1.25
    assert main(words) == 0
    assert "of 20, 0 foretold within 7 % of what was measured, the median 20.0 % off" in capsys.readouterr().out
    (rows,) = json.loads((tmp_path / "plan.json").read_text())["rows"].values()
    assert len(rows) == 21
    assert rows[3]["ms"] == pytest.approx(1.25 * rows[3]["foretold_ms"])
    assert "speedups at most 0.0 % off" in table(2, rows)


def test_a_busy_machine_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(quiet.os, "getloadavg", lambda: (1.5, 0.0, 0.0))
    assert main(["plan", "--backbone", MODEL]) == 2
    assert "keep 1.5 cores busy" in capsys.readouterr().err
