"""What training minimises: the task, the token budget, and agreement with a dense teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynavit.config import LossConfig
from dynavit.losses import keep_ratio_loss, logit_distillation, token_distillation
from dynavit.models import Trace


class ClassificationObjective:
    """Cross-entropy, keep-ratio loss and distillation, weighted as configured.

    Args:
        settings: the weights.
        budget: whether the selector's count is only expected, so that a keep-ratio loss applies.
        teacher: frozen dense timm model, or None.
    """

    def __init__(self, settings: LossConfig, budget: bool, teacher: nn.Module | None) -> None:
        self.settings = settings
        self.budget = budget and settings.keep_ratio > 0
        self.teacher: Any = teacher

    def __call__(
        self, images: Tensor, targets: Tensor, logits: Tensor, trace: Trace, keep_ratios: Sequence[float]
    ) -> dict[str, Tensor]:
        """Return the unweighted losses by name and their weighted sum as ``"loss"``.

        Args:
            images: ``(B, 3, H, W)``, for the teacher.
            targets: ``(B,)`` labels or ``(B, C)`` probabilities.
            logits: ``(B, C)``.
            trace: of the same forward.
            keep_ratios: the ratios aimed at in this step.
        """
        weights, settings = {"task": 1.0}, self.settings
        # probabilities come from mixup, which has smoothed them already
        smoothing = settings.label_smoothing if targets.ndim == 1 else 0.0
        losses = {"task": F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)}
        if self.budget and trace.expected:
            losses["keep_ratio"] = keep_ratio_loss(trace.expected, keep_ratios)
            weights["keep_ratio"] = settings.keep_ratio
        if self.teacher is not None:
            features, answer = self._teach(images)
            if settings.logit_distillation:
                losses["logit_distillation"] = logit_distillation(logits, answer, settings.distillation_temperature)
                weights["logit_distillation"] = settings.logit_distillation
            if settings.token_distillation and trace.masks:
                assert trace.features is not None
                assert trace.positions is not None
                losses["token_distillation"] = token_distillation(
                    trace.features, features, trace.positions, trace.masks[-1]
                )
                weights["token_distillation"] = settings.token_distillation
        for name, loss in trace.aux.items():
            losses[name], weights[name] = loss, 1.0
        losses["loss"] = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        return losses

    @torch.no_grad()
    def _teach(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.teacher.forward_features(images)
        return tokens[:, self.teacher.num_prefix_tokens :], self.teacher.forward_head(tokens)
