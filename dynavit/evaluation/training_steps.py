"""Training steps to compare: dense, truncated, masked and gathered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynavit.config import LossConfig
from dynavit.cost.oracle import oracle
from dynavit.models import PrunedViT, Trace
from dynavit.tasks.classification import ClassificationObjective
from dynavit.tasks.objective import Objective, Scheduled

WITH_TEACHER = ", with teacher"
_DISTILLATION = LossConfig(logit_distillation_weight=0.5, token_distillation_weight=0.5)


def training_steps(
    dense: PrunedViT,
    models: Sequence[PrunedViT],
    images: Tensor,
    dtype: torch.dtype,
    teacher: nn.Module | None = None,
) -> dict[str, Callable[[], object]]:
    """Return forward and backward of all that is compared, by name, with the losses of a training.

    They are ``dense``, which is timm's own forward, and of the model with number 0 ``oracle 0``, ``training, mask 0``
    and ``training, gather 0``, each where the model's parts allow it; with a teacher followed by ``WITH_TEACHER``.

    Args:
        dense: without stages.
        models: pruned ones of the same backbone; all are put into training mode.
        images: ``(B, 3, H, W)``.
        dtype: of autocast; float32 is without.
        teacher: frozen dense timm model, whose logits all of them learn; those that choose tokens learn its features
            of the kept ones, too.
    """
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    indices = torch.arange(len(images), device=images.device)
    settings, ending = (LossConfig(), "") if teacher is None else (_DISTILLATION, WITH_TEACHER)

    def step(module: nn.Module, forward: nn.Module, objective: Objective, counts: Sequence[int]) -> None:
        module.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            losses, _ = objective(forward, images, labels, indices, Scheduled(1.0, counts))
        losses["loss"].backward()

    plain = ClassificationObjective(settings, dense.selector, None, teacher)
    backbone = dense.train().backbone
    steps: dict[str, Callable[[], object]] = {}
    steps[f"dense{ending}"] = partial(step, backbone, _WithoutChoice(backbone), plain, [])
    for number, model in enumerate(models):
        truncated = _WithoutChoice(partial(oracle, model.train()))
        steps[f"oracle {number}{ending}"] = partial(step, model, truncated, plain, [])
        objective = ClassificationObjective(settings, model.selector, None, teacher)
        counts = model.stage_counts(math.prod(model.adapter.grid_size))
        for execution, possible in (("mask", not model.only_gathers), ("gather", not model.selector.soft)):
            if possible:
                trained = copy(model)
                trained.execution = execution
                steps[f"training, {execution} {number}{ending}"] = partial(step, trained, trained, objective, counts)
    return steps


class _WithoutChoice(nn.Module):
    """A forward that chooses no tokens, called as the objective calls a model that does."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, images: Tensor, **options: Any) -> tuple[Tensor, Trace]:
        nothing = images.new_empty(0)
        return self.run(images), Trace("gather", nothing, nothing, nothing, None)
