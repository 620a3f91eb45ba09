"""Fine-tune one candidate from the dense model, and say what it answers: the same for all of them.

Shapes: V views of each image, M images, S pixels, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from dynavit.config import LossConfig, OptimizerConfig
from dynavit.models import PrunedViT, Trace, prune
from dynavit.runs.build import StartingModel
from dynavit.tasks.classification import ClassificationObjective
from dynavit.tasks.count_loss import CountLoss
from dynavit.tasks.lesson import Lesson
from dynavit.tasks.objective import Scheduled
from dynavit.training.optimization import clip_by_part, create_optimizer, set_learning_rates
from dynavit.training.schedules import LearningRate

_EVALUATED = 250  # images at once


@dataclass(frozen=True)
class Recipe:
    """How long and how fast, the same for every candidate.

    Attributes:
        steps, batch_size: optimiser steps, and images of each.
        optimizer: rates; the backbone learns at ``backbone_lr_scale`` times the scorers' rate.
        loss: weights; the teacher is the dense model at full size.
        bf16: compute in bfloat16 where autocast does, in training and in evaluation.
    """

    steps: int
    batch_size: int
    optimizer: OptimizerConfig
    loss: LossConfig
    bf16: bool = False


class DenseObjective(ClassificationObjective):
    """Dense models imitate the teacher's tokens as pruned ones do, smaller images its grid, resampled to theirs."""

    def _agreement(self, output: Any, trace: Trace, lesson: Lesson) -> dict[str, tuple[Tensor, float]]:
        terms = super()._agreement(output, trace, lesson)
        target = resampled_tokens(lesson.features.float(), trace.features.shape[1])
        loss = F.mse_loss(trace.features.float(), target)
        return terms | {"token_distillation": (loss, self.settings.token_distillation_weight)}


class Shrunk(nn.Module):
    """A dense model that looks at its images at a smaller size.

    Args:
        model: of that size.
    """

    def __init__(self, model: PrunedViT) -> None:
        super().__init__()
        self.model = model
        self.size = model.adapter.grid_size[0] * model.backbone.patch_embed.patch_size[0]

    def forward(self, images: Tensor, **kwargs: Any) -> Any:
        """Resize images ``(B, 3, S, S)`` and run the model on them."""
        return self.model(F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True), **kwargs)


def finetune(
    model: PrunedViT, runner: nn.Module, teacher: nn.Module, pixels: Tensor, labels: Tensor, recipe: Recipe, seed: int
) -> None:
    """Train in place.

    Args:
        model: in training mode.
        runner: what is called with full-size images: the model, or a :class:`Shrunk` one.
        teacher: the dense timm model at full size, frozen.
        pixels: ``(V, M, 3, S, S)`` uint8, on the device of the model and the teacher.
        labels: ``(M,)`` int64, there too.
        recipe: how.
        seed: of order, views, noise and probes.
    """
    num_patches, device = math.prod(model.adapter.grid_size), pixels.device
    counts = None if model.selector.fixed_k else CountLoss(recipe.loss.keep_ratio_measure)
    kind = ClassificationObjective if model.stages else DenseObjective
    objective = kind(recipe.loss, model.selector, counts, teacher)
    start, has_target = StartingModel(model, model, False, True), recipe.loss.score_distillation_weight > 0
    optimizer = create_optimizer(recipe.optimizer, start, "none", scores_have_target=has_target)
    rate = LearningRate(recipe.steps // 20, recipe.steps)
    scheduled = Scheduled(1.0, model.stage_counts(num_patches, model.keep_ratios))
    torch.manual_seed(seed)
    order: Sequence[Tensor] = ()
    for step in range(recipe.steps):
        if not order:
            order = [*torch.randperm(len(labels)).split(recipe.batch_size)]
            order = [index for index in order if len(index) == recipe.batch_size]
        index, *order = order
        images = normalise(pixels[torch.randint(len(pixels), index.shape), index])
        mirrored = (torch.rand(len(images), 1, 1, 1) < 0.5).to(device)  # drawn on the CPU: the same on every device
        images = torch.where(mirrored, images.flip(3), images)
        set_learning_rates(optimizer, recipe.optimizer.lr * rate(step))
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
            losses, _ = objective(runner, images, labels[index], index, scheduled)
        losses["loss"].backward()
        clip_by_part(optimizer, 1.0)
        optimizer.step()


def resampled_tokens(features: Tensor, count: int) -> Tensor:
    """Return a square grid of tokens ``(B, N, D)`` as one of ``count`` tokens, ``(B, count, D)``."""
    size, of = math.isqrt(count), math.isqrt(features.shape[1])
    grid = features.mT.unflatten(-1, (of, of))
    return F.interpolate(grid, (size, size), mode="bilinear", antialias=True).flatten(2).mT


@torch.inference_mode()
def answers(runner: nn.Module, pixels: Tensor, bf16: bool = False) -> Tensor:
    """Return logits ``(M, C)``, fp32, of whole images ``(M, 3, S, S)`` uint8, both on the CPU, whatever runs them."""
    device = next(runner.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        batches = (normalise(some.to(device)) for some in pixels.split(_EVALUATED))
        return torch.cat([runner(images).float().cpu() for images in batches])


def resized(dense: PrunedViT, size: int) -> PrunedViT:
    """Return a copy of a dense model for images of another size, positions resampled."""
    copy = prune(deepcopy(dense.backbone), stages=())
    copy.set_input_size(size)
    return copy


def normalise(pixels: Tensor) -> Tensor:
    """Return fp32 images as timm's models want them from uint8 ones ``(B, 3, S, S)``."""
    mean, std = (
        torch.tensor(value, device=pixels.device)[:, None, None]
        for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (pixels / 255 - mean) / std
