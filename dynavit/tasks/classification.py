"""Classification: cross-entropy, mixup, top-1 and top-5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dynavit.config import DataConfig, LossConfig
from dynavit.data.classification import ClassificationData, create_classification_data
from dynavit.data.labelled import require_two
from dynavit.data.transforms import create_transforms
from dynavit.errors import InputError
from dynavit.metrics.accuracy import accuracy_interval, topk_accuracy
from dynavit.models import PrunedViT
from dynavit.runs.loading import foreground_of
from dynavit.selectors import Selector
from dynavit.tasks.base import Detail, Evaluation, Predicted, Task
from dynavit.tasks.count_loss import CountLoss
from dynavit.tasks.objective import Objective
from dynavit.tasks.outputs import collect_outputs, selection_metrics


class ClassificationTask(Task):
    """Which of the classes an image shows."""

    classes = "classes"
    metric = "top1"
    shown: ClassVar = {"top1": "top-1 {:.2f} %", "foreground_recall": "foreground recall {:.3f}"}

    def open_data(
        self,
        preprocessing: dict[str, Any],
        train: bool = True,
        augment: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> ClassificationData:
        settings = self.config.data
        augmented, plain = create_transforms(**preprocessing, augmentation=settings.augmentation)
        data = create_classification_data(
            settings.name,
            settings.root,
            transforms=(augmented if augment else plain, plain),
            seed=self.config.seed,
            train=train,
            train_split=settings.train_split,
            validation_split=settings.validation_split,
            download=settings.download,
            corrupt=settings.corrupt,
            options=settings.options,
            class_names=class_names,
        )
        if train:
            require_two(data.class_names)
        self._preprocessing = preprocessing
        return data

    def objective(
        self, data: ClassificationData, model: PrunedViT, count_loss: CountLoss | None, teacher: nn.Module | None
    ) -> Objective:
        mixup = _mixup(self.config.data, self.config.loss, len(data.class_names))
        weights = None if self.config.loss.class_weights == "none" else _balanced(data)
        return ClassificationObjective(self.config.loss, model.selector, count_loss, teacher, mixup, weights)

    def evaluate(
        self,
        models: Sequence[PrunedViT],
        loader: DataLoader[Any],
        accelerator: Accelerator,
        data: ClassificationData,
        title: str = "",
    ) -> list[Evaluation]:
        best = min(5, models[0].num_classes)
        found = collect_outputs(
            models, loader, accelerator, lambda logits: logits.float().topk(best).indices, title=title
        )
        foreground = foreground_of(data.validation, self._preprocessing, models[0].adapter.grid_size)
        evaluations = []
        for model, answers in zip(models, found, strict=True):
            metrics = topk_accuracy(answers.answers, answers.labels) | selection_metrics(model, answers, foreground)
            predicted = Predicted(answers.indices, answers.labels, answers.answers[:, 0])
            detail = Detail(100.0 * (predicted.answers == predicted.labels).double(), answers.indices)
            evaluations.append(Evaluation(metrics, detail, answers.counts, predicted=predicted))
        return evaluations

    def interval(self, detail: Detail) -> dict[str, float]:
        low, high = accuracy_interval(int((detail.values > 0).sum()), len(detail.values))
        return {"top1_low": low, "top1_high": high}

    def chance_loss(self, num_classes: int) -> float:
        return math.log(num_classes)


class ClassificationObjective(Objective):
    """Cross-entropy, with mixup and cutmix if configured.

    Args:
        mixup: timm's, or None.
        weights: ``(C,)`` of the classes in the cross-entropy; alike if None. The other arguments are those of
            :class:`Objective`.
    """

    def __init__(
        self,
        settings: LossConfig,
        selector: Selector,
        count_loss: CountLoss | None,
        teacher: Any,
        mixup: Mixup | None = None,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__(settings, selector, count_loss, teacher)
        self.mixup, self.weights = mixup, weights

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.mixup is None:
            return images, labels
        mixed: tuple[Tensor, Tensor] = self.mixup(images, labels)
        return mixed

    def task_losses(self, output: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, float]]:
        # probabilities come from mixup, which has smoothed them already
        smoothing = self.settings.label_smoothing if targets.ndim == 1 else 0.0
        weights = None if self.weights is None else self.weights.to(output.device)
        # over images: torch's mean of weighted losses divides by the weights in the batch, which differ by process
        each = F.cross_entropy(output.float(), targets, weights, reduction="none", label_smoothing=smoothing)
        return {"task": (each.mean(), 1.0)}


def _balanced(data: ClassificationData) -> Tensor:
    """Return weights ``(C,)`` with which every class counts alike, and the mean image 1; 0 for classes without images.

    Raises:
        InputError: it is not known how many images each class has.
    """
    try:
        counts = torch.tensor(data.class_counts(), dtype=torch.float32)
    except InputError as error:
        raise InputError(f"loss.class_weights=balanced: {error} Set it to none.") from None
    return torch.where(counts > 0, counts.sum() / (counts.count_nonzero() * counts), 0.0)


def _mixup(data: DataConfig, loss: LossConfig, num_classes: int) -> Mixup | None:
    if not (data.mixup or data.cutmix):
        return None
    if data.batch_size % 2:
        raise InputError(f"data.batch_size={data.batch_size}: mixup and cutmix need an even number.")
    return Mixup(
        mixup_alpha=data.mixup, cutmix_alpha=data.cutmix, label_smoothing=loss.label_smoothing, num_classes=num_classes
    )
