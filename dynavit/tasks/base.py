"""What classification and re-identification do differently."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler

from dynavit.config import Config
from dynavit.data.samplers import ShuffledSampler
from dynavit.metrics.bootstrap import bootstrap_interval
from dynavit.models import PrunedViT
from dynavit.runs.loading import fitting_batch_size
from dynavit.tasks.count_loss import CountLoss
from dynavit.tasks.objective import Objective


class Detail(NamedTuple):
    """What an evaluation found, sample by sample.

    Attributes:
        values: ``(V,)`` of the task's metric in percent, whose mean it is.
        groups: ``(V,)`` int64: samples of one group are easy or hard together.
    """

    values: Tensor
    groups: Tensor


class Predicted(NamedTuple):
    """Which class V images show, and which one a model says.

    Attributes:
        indices: ``(V,)`` int64, of the images in their data.
        labels: ``(V,)`` int64.
        answers: ``(V,)`` int64.
    """

    indices: Tensor
    labels: Tensor
    answers: Tensor


class Evaluation(NamedTuple):
    """What was found of one model.

    Attributes:
        metrics: by name; percentages where they are shares.
        detail: the task's metric, sample by sample.
        counts: ``(S, M, stages)`` int64, tokens that each stage kept of each of M images of a sample, where thresholds
            decide; else None.
        searched: embeddings of the data, where the task searches them; see
            :class:`~dynavit.tasks.reid.Searchable`.
        predicted: of classes, where the task tells them apart.
    """

    metrics: dict[str, float]
    detail: Detail
    counts: Tensor | None
    searched: Any = None
    predicted: Predicted | None = None


class Task(ABC):
    """Data, losses and metrics of one kind of problem.

    Attributes:
        classes: what training labels stand for, in the plural.
        metric: the validation metric, in percent, by which the best model is chosen.
        shown: metrics to print after an epoch, by name, with their format.
    """

    classes: ClassVar[str]
    metric: ClassVar[str]
    shown: ClassVar[Mapping[str, str]]

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def open_data(
        self,
        preprocessing: dict[str, Any],
        train: bool = True,
        augment: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> Any:
        """Open the data, prepared as the model wants.

        They have ``train`` and ``validation``, which yield ``(image, label, index)``, and ``class_names`` in the
        order of the training labels.

        Args:
            preprocessing: the model's.
            train: also open the training split.
            augment: as training does; False prepares training images like those of validation.
            class_names: of a model that is evaluated, by which images are labelled; those of the training split if
                None. Where labels are only compared with each other, it makes no difference.

        Raises:
            InputError: they do not exist, or make no sense.
        """

    @abstractmethod
    def objective(
        self, data: Any, model: PrunedViT, count_loss: CountLoss | None, teacher: nn.Module | None
    ) -> Objective:
        """Return the losses of a training step."""

    @abstractmethod
    def evaluate(
        self,
        models: Sequence[PrunedViT],
        loader: DataLoader[Any],
        accelerator: Accelerator,
        data: Any,
        title: str = "",
    ) -> list[Evaluation]:
        """Return what is found of each model, in eval mode, on the validation data behind a prepared loader.

        Every image is read once for all of them.
        """

    def inputs(self, model: PrunedViT, data: Any, indices: Tensor, train: bool = False) -> dict[str, Tensor]:
        """Return what else a model is given with the samples ``(B,)`` of validation, or of training."""
        return {}

    def parts(self, data: Any) -> Mapping[str, Any]:
        """Return what else the model is made with because of the data: the camera embedding, and how many spectra."""
        return {}

    def metadata(self, data: Any) -> dict[str, Any]:
        """Return what to save with the model, beside preprocessing and class names."""
        return {}

    def interval(self, detail: Detail) -> dict[str, float]:
        """Return the 95 % interval of the metric, ``<metric>_low`` and ``<metric>_high``, resampling groups."""
        return self._ends(self.metric, detail)

    def difference(self, base: Detail, other: Detail) -> dict[str, float]:
        """Return the 95 % interval of the difference in the metric, resampling groups alike for both."""
        return self._ends(f"delta_{self.metric}", Detail(other.values.double() - base.values.double(), base.groups))

    def _ends(self, name: str, detail: Detail) -> dict[str, float]:
        if len(detail.groups.unique()) < 2:
            return {}  # there is nothing to resample
        _, low, high = bootstrap_interval(*detail)
        return {f"{name}_low": low, f"{name}_high": high}

    @abstractmethod
    def chance_loss(self, num_classes: int) -> float:
        """Return the loss of guessing, above which a run has diverged."""

    def batch_size(self, data: Any, processes: int) -> int:
        """Return how many images a process trains on at a time: as configured, or fewer where there are too few.

        Raises:
            InputError: the data do not make one step of the smallest batches.
        """
        if isinstance(data.train, IterableDataset):
            return self.config.data.batch_size
        return fitting_batch_size(self.config, len(data.train), processes)

    def sampler(self, data: Any, processes: int) -> Sampler[int] | None:
        """Return the order of the training images; None for streams, which have their own."""
        if isinstance(data.train, IterableDataset):
            return None
        return ShuffledSampler(len(data.train), self.config.seed)

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Return the metrics of an epoch as one line."""
        return "  ".join(text.format(metrics[name]) for name, text in self.shown.items() if name in metrics)
