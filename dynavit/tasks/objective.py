"""What training minimises: the task, the number of tokens kept, agreement with a dense teacher, and rewards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynavit.config import LossConfig
from dynavit.errors import InputError
from dynavit.losses import logit_distillation, policy_gradient_loss, score_distillation, token_distillation
from dynavit.models import Trace
from dynavit.selectors import Selector
from dynavit.tasks.count_loss import CountLoss
from dynavit.tasks.lesson import Lesson, check_attends, teach
from dynavit.tasks.rewards import create_reward


@dataclass(frozen=True)
class Scheduled:
    """Where the schedules stand in one step.

    Attributes:
        temperature: of the selector.
        counts: tokens to keep at each stage; tensors where the model is compiled.
    """

    temperature: float | Tensor
    counts: Sequence[Any]


class Objective(ABC):
    """One forward and its losses, weighted as configured; a task adds its own.

    Selectors that learn from a reward see every image ``reward_samples`` times in one forward, and each
    sample's reward is compared with the others' of its image.

    Args:
        settings: weights and options.
        selector: of the model.
        count_loss: compares kept tokens with the wanted counts; None where the selector keeps exactly k.
        teacher: frozen dense timm model, or None.

    Attributes:
        module: what of the losses has parameters, if anything: to be optimised, and prepared by the accelerator.
    """

    module: nn.Module | None = None

    def __init__(self, settings: LossConfig, selector: Selector, count_loss: CountLoss | None, teacher: Any) -> None:
        self.settings = settings
        self.count_loss = count_loss
        self.teacher = teacher
        if teacher is not None and settings.score_distillation_weight:
            check_attends(teacher)
        self.reward = create_reward(settings.reward) if selector.needs_reward else None
        self.samples = 1
        if selector.needs_reward:
            self.samples = 2 if selector.antithetic else settings.reward_samples

    @abstractmethod
    def task_losses(self, output: Any, targets: Tensor) -> dict[str, tuple[Tensor, float]]:
        """Return the task's losses by name, each with its weight."""

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images ``(B, 3, H, W)`` and targets as the losses want them."""
        return images, labels

    def inputs(self, indices: Tensor) -> dict[str, Tensor]:
        """Return what else the model is given for these samples ``(B,)``."""
        return {}

    def statistics(self) -> dict[str, Tensor]:
        """Return numbers of the last forward to be logged."""
        return {}

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, indices: Tensor, scheduled: Scheduled
    ) -> tuple[dict[str, Tensor], Trace]:
        """Return the unweighted losses by name, their weighted sum as ``"loss"``, and the forward's trace.

        A policy gradient's value, which means nothing, is not in that sum; its gradient is.

        Args:
            model: in training mode, prepared by the accelerator.
            images: ``(B, 3, H, W)``.
            labels: ``(B,)``.
            indices: ``(B,)`` of the samples.
            scheduled: what holds in this step.
        """
        images, targets = self.prepare(images, labels)
        lesson = self._teach(images)
        inputs = self.inputs(indices)
        if self.samples > 1:
            images, targets = _repeated(images, self.samples), _repeated(targets, self.samples)
            inputs = {name: _repeated(value, self.samples) for name, value in inputs.items()}
        output, trace = model(
            images, return_trace=True, temperature=scheduled.temperature, keep_counts=scheduled.counts, **inputs
        )
        terms = self.task_losses(output, targets)
        if self.count_loss is not None and trace.choices:
            terms["keep_ratio"] = self.count_loss(trace, scheduled.counts), self.settings.keep_ratio_weight
        if lesson is not None:
            terms |= self._agreement(output, trace, lesson)
        if self.reward is not None and (log_prob := trace.log_prob) is not None:
            rewards = self._rewards(output, targets)
            # of several spectra, what is chosen in all of them earns the sample's reward
            log_prob = log_prob.reshape(*rewards.shape, -1).sum(dim=2)
            terms["policy_gradient"] = policy_gradient_loss(log_prob, rewards), self.settings.policy_gradient_weight
        for name, loss in trace.aux.items():
            terms[name] = loss, 1.0
        losses = {name: loss for name, (loss, _) in terms.items()}
        if (reinforced := terms.get("policy_gradient")) is not None:
            # its value means nothing, so that it adds its gradient alone to what is reported and guarded
            terms["policy_gradient"] = reinforced[0] - reinforced[0].detach(), reinforced[1]
        losses["loss"] = torch.stack([weight * loss for loss, weight in terms.values()]).sum()
        return losses, trace

    @torch.no_grad()
    def _rewards(self, output: Any, targets: Tensor) -> Tensor:
        """Return the rewards ``(K, B)``: each sample of the whole batch is judged by itself."""
        assert self.reward is not None
        size = len(targets) // self.samples
        parts = [slice(number * size, (number + 1) * size) for number in range(self.samples)]
        rewards = [self.reward(_part(output, part), targets[part]) for part in parts]
        for found in rewards:
            if not isinstance(found, Tensor) or found.shape != (size,):
                shown = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
                raise InputError(
                    f"loss.reward={self.settings.reward} returned {shown} for {size} images: return a tensor of shape "
                    f"({size},), one number an image."
                )
        return torch.stack(rewards)

    def _teach(self, images: Tensor) -> Lesson | None:
        if self.teacher is None:
            return None
        if images.ndim == 5:  # of several spectra, each is an image to the teacher
            images = images.flatten(0, 1)
        lesson = teach(self.teacher, images, attention=self.settings.score_distillation_weight > 0)
        features, answer, attention = lesson.features, lesson.answer, lesson.attention
        if attention is not None:
            attention = _repeated(attention, self.samples)
        return Lesson(_repeated(features, self.samples), _repeated(answer, self.samples), attention)

    def _agreement(self, output: Any, trace: Trace, lesson: Lesson) -> dict[str, tuple[Tensor, float]]:
        settings, terms = self.settings, {}
        if settings.logit_distillation_weight:
            loss = logit_distillation(output, lesson.answer, settings.distillation_temperature)
            terms["logit_distillation"] = loss, settings.logit_distillation_weight
        if settings.token_distillation_weight and trace.stages:
            loss = token_distillation(trace.features, lesson.features, trace.positions, trace.stages[-1].kept)
            terms["token_distillation"] = loss, settings.token_distillation_weight
        if lesson.attention is not None:
            target = lesson.attention
            stages = [score_distillation(at.logits, target, at.positions, at.candidates) for at in trace.choices]
            terms["score_distillation"] = torch.stack(stages).mean(), settings.score_distillation_weight
        return terms


def _repeated(tensor: Tensor, times: int) -> Tensor:
    """Repeat a batch as a whole: sample s of image b stands at ``s * B + b``."""
    return tensor.repeat(times, *[1] * (tensor.ndim - 1)) if times > 1 else tensor


def _part(output: Any, part: slice) -> Any:
    """Cut a batch out of a model's output, which is a tensor or a named tuple of them."""
    return output[part] if isinstance(output, Tensor) else type(output)(*(tensor[part] for tensor in output))
