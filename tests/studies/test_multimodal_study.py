"""Guided, unguided and misguided scores: trained alike, from one dense model a seed, each run made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dynavit.config import load_config
from dynavit.data.quickstart_spectra import SPECTRA
from dynavit.scorers import GuidedScorer, StageView
from studies import multimodal
from studies.multimodal import ShuffledGuides, compare_guides, table
from studies.training_by_removal import Judged

TINY = """
task: reid
model: {architecture: vit_tiny_patch16_224, kwargs: {img_size: [96, 48], patch_size: 16, embed_dim: 24, depth: 3,
  num_heads: 3}, stages: [1], keep_ratio: 0.5, selector: {name: topk}, scorer: {name: guided, guides: 2},
  reducer: {name: drop}}
data: {name: quickstart-multimodal, options: {train_identities: 8, images_per_identity: 4, gallery_per_camera: 1},
  batch_size: 8, images_per_identity: 2, workers: 0}
train: {epochs: 1}
"""


def test_shuffled_guides_are_those_of_other_samples() -> None:
    tokens, guide = torch.randn(12, 5, 8), torch.randn(12, 2, 8)  # four samples of three spectra
    scorers = [GuidedScorer(8, guides=2, weight=1.0), ShuffledGuides(8, guides=2, weight=1.0)]
    scorers[1].load_state_dict(scorers[0].state_dict())
    view = StageView(0, torch.arange(5).expand(12, 5), summary=tokens[:, 0], guide=guide)
    other = StageView(0, view.positions, summary=tokens[:, 0], guide=guide.view(4, 3, 2, 8)[[2, 3, 0, 1]].flatten(0, 1))
    assert torch.equal(scorers[1](tokens, None, view), scorers[0](tokens, None, other))


def test_the_table_tells_a_gain_from_noise() -> None:
    generator, groups = np.random.default_rng(0), np.arange(200)
    noise = 10 * generator.standard_normal((3, 200))

    def runs(whole: float, missing: float) -> list[dict[str, Judged]]:
        keys = {"all": whole, **dict.fromkeys(SPECTRA, missing)}
        return [{key: Judged(mean + noise[seed], groups) for key, mean in keys.items()} for seed in range(3)]

    found = table(["better", "unguided"], {"better": runs(62, 55), "unguided": runs(60, 50)})
    better, base = (line.split("|")[1:-1] for line in found.splitlines()[2:])
    assert better[2].strip() == "+2.00"
    assert better[3].strip() == "+2.00 to +2.00"
    assert [cell.strip() for cell in better[7:]] == ["7.00", "+3.00", "+3.00 to +3.00"]
    assert [cell.strip() for cell in base[2:4]] == ["-", "-"]


@pytest.mark.slow
def test_trainings_differ_in_their_scorer_alone_and_are_not_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.setattr(multimodal, "_CONFIG", str(tmp_path / "tiny.yaml"))
    monkeypatch.setattr(multimodal, "_TEST", {"data.options": {"test_identities": 4}})
    names = list(multimodal.VARIANTS)
    first = compare_guides([3], tmp_path, workers=1, names=names)
    configs = [load_config(tmp_path / f"{name.replace(' ', '_')}-3" / "config.yaml") for name in names]
    assert [config.model.scorer["name"] for config in configs] == ["guided", "light", "shuffled_guides", "random"]
    for config in configs:
        config.model.scorer = config.model.selector = config.output_dir = None
    assert all(config == configs[0] for config in configs)
    assert configs[0].model.checkpoint == str(tmp_path / "dense-3")
    monkeypatch.setattr(multimodal.dynavit, "train", None)
    assert compare_guides([3], tmp_path, workers=1, names=names) == first
