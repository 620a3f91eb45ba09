"""The configurations of published methods: each trains, and says in the terms of its paper what it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import dynavit
from dynavit.cli import main
from dynavit.config import load_config
from dynavit.cost.macs import closed_form_macs, scoring_macs
from dynavit.models.counts import stage_counts
from dynavit.models.hub import model_config
from dynavit.models.pruning import PRUNING
from dynavit.models.ratios import checked_ratios
from dynavit.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
CONFIGS = {path.stem: path for path in sorted((ROOT / "configs/methods").glob("*.yaml"))}
EVERY_BLOCK = ("merge_distinct", "tome")
LEARNED = ("anchored", "dtps", "dynamicvit", "predictor_topk", "seps")

each_config = pytest.mark.parametrize("name", CONFIGS)


def short(name: str, folder: Path) -> list[str]:
    """The same training on the quickstart's data and model, of two steps of four images."""
    stages = [0, 1, 2, 3, 4, 5] if name in EVERY_BLOCK else [1, 2, 4]
    return [
        f"output_dir={folder}", f"model.checkpoint={ROOT / 'checkpoints/quickstart-dense'}", f"model.stages={stages}",
        "model.architecture=null", "model.pretrained=false", "data.name=quickstart", "data.crop_pct=1.0",
        "data.options={train_size: 16, validation_size: 8}", "data.batch_size=4", "data.workers=0",
        "train.epochs=1", "train.steps_per_epoch=2", "train.mixed_precision=no", "train.log_steps=1",
        "evaluate.calibration_images=8", "evaluate.rounds=1", "evaluate.keep_ratios=[1.0,0.5]",
        "evaluate.batch_sizes=[2]",
    ]  # fmt: skip


@each_config
def test_each_trains(name: str, tmp_path: Path) -> None:
    config = load_config(CONFIGS[name], short(name, tmp_path / "run"))
    trainer = Trainer(config)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    metrics = trainer.fit()
    assert 0 <= metrics["val/top1"] <= 100
    (row,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert torch.isfinite(torch.tensor(row["train/loss"]))
    assert ("train/keep_ratio" in row) == (name in ("dtps", "dynamicvit", "seps"))
    moved = {key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.startswith("backbone.") for key in moved) == (config.train.freeze_epochs == 0)
    assert any(key.startswith("scorers.") for key in moved) == (name in LEARNED)
    model = dynavit.load(tmp_path / "run")
    assert model.stages == tuple(config.model.stages or ())
    assert (model.placement, model.count_rule) == (config.model.placement, config.model.count_rule)
    assert model.reducer.name == config.model.reducer["name"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evit_fuse", "tome", "dynamicvit", "adaptive", "seps"])
def test_what_they_train_can_be_evaluated(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    Trainer(load_config(CONFIGS[name], short(name, run))).fit()
    assert main(["evaluate", str(run)]) == 0
    rows = json.loads((run / "evaluation.json").read_text())
    assert {row["keep_ratio"] for row in rows} == {1.0, 0.5}
    assert rows[0]["model"] == "dense"
    assert rows[-1]["gmacs"] < rows[0]["gmacs"]


@pytest.mark.parametrize(
    ("name", "gmacs"), [("dynamicvit", 2.8780), ("predictor_topk", 2.8780), ("evit", 2.9970), ("evit_fuse", 3.0293)]
)
def test_their_cost_is_the_published_one(name: str, gmacs: float) -> None:
    """Which leaves out scoring: DynamicViT's scorers, and EViT's attention, which its own code has at hand."""
    settings = load_config(CONFIGS[name]).model
    parts = {key: getattr(settings, key) for key in ("selector", "scorer", "reducer", "placement", "count_rule")}
    assert settings.architecture is not None
    model = dynavit.create_model(settings.architecture, stages=settings.stages, keep_ratio=settings.keep_ratio, **parts)
    assert (closed_form_macs(model) - scoring_macs(model)) / 1e9 == pytest.approx(gmacs, abs=1e-4)


def test_the_default_is_spelled_out() -> None:
    """Also with a selector alone, and a configuration that says nothing."""
    settings, nothing = load_config(CONFIGS["default"]).model, load_config(None, ["model.architecture=test_vit"]).model
    size = {"img_size": 32, "embed_dim": 24, "num_heads": 3}  # of 12 blocks
    built = [
        model_config(dynavit.create_model("vit_tiny_patch16_224", **size, **parts))
        for parts in (
            {key: getattr(settings, key) for key in PRUNING},
            {key: getattr(nothing, key) for key in PRUNING},
            {"selector": {"name": "topk", "gradient": "none"}},
            {},
        )
    ]
    assert built[0]["stages"] == [0, 4]
    assert all(one == built[0] for one in built)


def test_tome_merges_13_patches_in_every_block() -> None:
    settings = load_config(CONFIGS["tome"]).model
    ratios = checked_ratios(settings.keep_ratio, 12, "linear")
    left = stage_counts(196, ratios, "linear")
    assert left[-1] == 196 - 12 * 13
    assert all(abs(count - (196 - 13 * block)) <= 1 for block, count in enumerate(left, start=1))


@pytest.mark.parametrize(
    ("name", "why"), [("class_attention", "scorer class_attention has nothing"), ("tome", "reducer merge")]
)
def test_a_frozen_backbone_leaves_them_nothing_to_learn(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(dynavit.InputError, match=f"nothing is left to learn.*{why}"):
        Trainer(load_config(CONFIGS[name], [*short(name, tmp_path), "train.freeze=backbone"]))


def test_the_run_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tome", "etps"):
        Trainer(load_config(CONFIGS[name], short(name, tmp_path / name))).fit()
    said = capsys.readouterr().out
    assert "55 -> 47 -> 38 -> 30 -> 21 -> 13 inside blocks [0, 1, 2, 3, 4, 5]; reducer merge; 10 classes" in said
    assert "inside blocks [1, 2, 4]; scorer class_attention, selector topk, reducer squeeze; 10 classes" in said
