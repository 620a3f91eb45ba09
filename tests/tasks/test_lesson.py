"""What a teacher says, where it looks, and scorers that learn of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

import dynavit
from dynavit.config import Config, LossConfig
from dynavit.errors import UnsupportedBackbone
from dynavit.selectors import create_selector
from dynavit.tasks.classification import ClassificationObjective
from dynavit.tasks.lesson import check_score_distillation, late_attention, teach
from dynavit.tasks.objective import Scheduled
from dynavit.training.trainer import Trainer

Make = Callable[..., Any]


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "deit_distilled", "siglip", "dinov3", "beit", "naflex"])
def test_one_pass_gives_what_timm_gives_and_the_attention(name: str, backbone_of: Make, images_for: Make) -> None:
    teacher = backbone_of(name, depth=4)
    images = images_for(teacher)
    lesson = teach(teacher, images, attention=True)
    plain = teach(teacher, images, attention=False)
    assert plain.attention is None
    assert torch.equal(lesson.features, plain.features)
    assert torch.equal(lesson.answer, plain.answer)
    assert torch.equal(plain.answer, teacher(images))
    assert lesson.attention.shape == plain.features.shape[:2]
    assert (lesson.attention > 0).all()


class Noting(Attention):
    """timm's attention, written out, which keeps its weights."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        queries, keys, values = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        self.weights = (queries @ keys.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((self.weights @ values).transpose(1, 2).flatten(2))


@torch.no_grad()
def test_late_attention_is_that_of_the_class_token_in_the_last_third(backbone_of: Make, images_for: Make) -> None:
    teacher = backbone_of("vit")
    images = images_for(teacher)
    _, found = late_attention(teacher, images)
    for block in teacher.blocks:
        noting = Noting(48, num_heads=3, qkv_bias=True)
        noting.load_state_dict(block.attn.state_dict())
        block.attn = noting
    teacher(images)
    expected = torch.stack([block.attn.weights[:, :, 0, 1:].mean(dim=1) for block in teacher.blocks[-2:]]).mean(dim=0)
    torch.testing.assert_close(found, expected)


def taught(tiny: Make, *settings: str) -> Config:
    """A run whose teacher is what it starts from."""
    dense = tiny("model.stages=[]", "train.epochs=1", folder="dense")
    Trainer(dense).fit()
    config: Config = tiny("loss.score_distillation_weight=1.0", "model.scorer.name=light", "train.epochs=1", *settings)
    config.model.checkpoint, config.model.architecture, config.model.kwargs = str(dense.run_dir), None, {}
    return config


def test_a_scorer_learns_of_the_teacher_alone(tiny: Make) -> None:
    """Where the selector passes no gradient, without probes; and the loss is logged and part of what is minimised."""
    selector = "model.selector={name: topk, gradient: none}"
    trainer = Trainer(taught(tiny, selector, "model.execution=gather", "model.probes=0"))
    before = [weight.clone() for weight in trainer.model.scorers.parameters() if weight.numel() > 1]
    images, labels, indices = next(iter(trainer.batches.epoch(0, 0)))
    losses, trace = trainer.setup.objective(trainer.model, images, labels, indices, Scheduled(1.0, (8, 4)))
    assert trace.execution == "gather"
    losses["score_distillation"].backward(retain_graph=True)
    assert all(weight.grad.norm() > 0 for weight in trainer.model.scorers.parameters() if weight.numel() > 1)
    trainer.model.zero_grad()
    trainer.fit()
    after = [weight for weight in trainer.model.scorers.parameters() if weight.numel() > 1]
    assert all(not torch.equal(weight, start) for weight, start in zip(after, before, strict=True))
    row = trainer.metrics.rows()[-1]
    assert row["train/loss"] == pytest.approx(row["train/task"] + row["train/score_distillation"], rel=1e-5)


@pytest.mark.parametrize(
    "parts",
    [
        {"scorer": "class_attention"},
        {"selector": "random"},
        {"reducer": "merge"},
        {"stages": ()},
    ],
    ids=str,
)
def test_a_target_for_nobody_is_refused(parts: dict[str, Any], backbone_of: Make) -> None:
    model = dynavit.prune(backbone_of("vit"), **parts)
    check_score_distillation(LossConfig(), model)
    with pytest.raises(dynavit.InputError, match=r"^loss.score_distillation_weight=0.5: nothing here learns to score"):
        check_score_distillation(LossConfig(score_distillation_weight=0.5), model)


def test_without_a_teacher_that_knows_the_classes_it_is_refused(tiny: Make) -> None:
    with pytest.raises(dynavit.InputError, match=r"loss.teacher=start: .* or set loss.score_distillation_weight=0\.$"):
        Trainer(tiny("model.scorer.name=mlp", "loss.score_distillation_weight=0.5"))


def test_a_teacher_whose_attention_cannot_be_read_is_refused(backbone_of: Make) -> None:
    teacher, settings = backbone_of("vit"), LossConfig(score_distillation_weight=0.5)
    teacher.blocks[-1].attn = nn.Identity()
    with pytest.raises(UnsupportedBackbone, match=r"^loss.score_distillation_weight: of the teacher, .* Identity "):
        ClassificationObjective(settings, create_selector("topk"), None, teacher)
    ClassificationObjective(LossConfig(token_distillation_weight=0.5), create_selector("topk"), None, teacher)
