"""Every selector trains the quickstart: the loss goes down and what should learn, does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dynavit
from dynavit.config import load_config
from dynavit.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
VARIANTS = {
    **{name: {"name": name} for name in dynavit.list_selectors() if name != "fixed"},
    "topk, gate": {"name": "topk", "gradient": "gate"},
    "topk, none": {"name": "topk", "gradient": "none"},
    "ste, bernoulli": {"name": "ste", "backward": "bernoulli"},
    "ste, reinmax": {"name": "ste", "backward": "reinmax"},
    "score_function, bernoulli": {"name": "score_function", "distribution": "bernoulli"},
}


@pytest.mark.parametrize(
    "variant", ["topk", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name != "topk")]
)
def test_a_few_steps_of_the_quickstart(variant: str, tmp_path: Path) -> None:
    """A freshly initialised head on one batch, so that there is something to gain in ten steps."""
    config = load_config(
        ROOT / "configs/quickstart/learned.yaml",
        [
            f"output_dir={tmp_path}", "train.epochs=10", "data.batch_size=16",
            "data.options={train_size: 16, validation_size: 8}", "data.workers=0", "loss.logit_distillation_weight=0",
            "loss.token_distillation_weight=0", "loss.reward_samples=2",
            "optimizer.lr=0.002",
            "optimizer.backbone_lr_scale=1", "optimizer.warmup_epochs=0",
        ],
    )  # fmt: skip
    config.model.checkpoint = str(ROOT / "checkpoints/quickstart-dense")
    config.model.selector = VARIANTS[variant]
    trainer = Trainer(config)
    torch.nn.init.normal_(trainer.model.backbone.head.weight, std=0.02)
    scorers = {name: p.detach().clone() for name, p in trainer.model.scorers.named_parameters()}
    batch = next(iter(trainer.batches.epoch(0, 0)))  # always the same, so that the loss is comparable
    seen = []
    for _ in range(10):
        losses, norms = trainer._step(*batch)
        assert all(torch.isfinite(value) for value in norms.values())
        seen.append(float(losses["task"]))
    assert max(seen) < 10
    assert sum(seen[-3:]) < 0.9 * sum(seen[:3])
    selector = trainer.model.selector
    learns = selector.trains_scorer or selector.needs_reward
    moved = [not torch.equal(p, scorers[name]) for name, p in trainer.model.scorers.named_parameters()]
    assert any(moved) == learns
    if learns:  # every stage, not the first alone
        for stage in range(3):
            assert any(flag for flag, name in zip(moved, scorers, strict=True) if name.startswith(f"{stage}.")), (
                f"stage {stage}"
            )
