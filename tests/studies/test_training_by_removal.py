"""Probes against masks: the same training but for the execution, judged on the same images, each run made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dynavit.config import load_config
from studies import training_by_removal
from studies.training_by_removal import Judged, Quickstart, compare_executions, table

TINY = """
model: {checkpoint: checkpoints/quickstart-dense, stages: [1, 2], selector: {name: topk}, scorer: {name: mlp},
  reducer: {name: drop}}
data: {name: quickstart, options: {train_size: 32, validation_size: 16}, crop_pct: 1.0, batch_size: 16, workers: 0}
train: {epochs: 1}
"""


def test_the_table_tells_a_loss_from_noise() -> None:
    generator = np.random.default_rng(0)
    groups = np.arange(400)

    def runs(share: float) -> list[Judged]:
        return [Judged(100.0 * (generator.random(400) < share), groups) for _ in range(3)]

    masks = runs(0.9)
    found = table("quickstart", [0.7, 0.5], {"masks-0.7": masks, "probes-0.7": masks} | _at(0.5, masks, runs(0.7)))
    equal, worse = found.splitlines()[2:]
    assert "+0.00 | +0.00 to +0.00 | yes" in equal
    assert worse.rstrip(" |").endswith("no")
    assert f"{np.mean([run.values for run in masks]):.2f} [" in equal


def _at(ratio: float, masks: list[Judged], probes: list[Judged]) -> dict[str, list[Judged]]:
    return {f"masks-{ratio:g}": masks, f"probes-{ratio:g}": probes}


@pytest.mark.slow
def test_trainings_differ_in_their_execution_alone_and_are_not_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    problem = Quickstart(str(config), {"data.options": {"validation_size": 24}}, "top-1", 0.3)
    monkeypatch.setitem(training_by_removal.PROBLEMS, "quickstart", problem)
    first = compare_executions("quickstart", [0.5], [3], tmp_path, workers=1)
    masks, probes = (load_config(tmp_path / f"quickstart-{name}-0.5-3" / "config.yaml") for name in ("masks", "probes"))
    assert (masks.seed, masks.model.keep_ratio, masks.model.execution) == (3, 0.5, "mask")
    assert probes.model.execution == "gather"
    probes.model.execution, probes.output_dir = masks.model.execution, masks.output_dir
    assert probes == masks
    assert len(np.load(tmp_path / "quickstart-masks-0.5-3" / "answers.npz")["values"]) == 24
    monkeypatch.setattr(training_by_removal.dynavit, "train", None)
    assert compare_executions("quickstart", [0.5], [3], tmp_path, workers=1) == first
