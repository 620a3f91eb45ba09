"""Re-identification: triplet and identity losses on PK batches, mAP and rank-k."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler

from dynavit.config import LossConfig
from dynavit.data.reid import ReidData, create_reid_data
from dynavit.data.samplers import PKSampler, fitting_identities
from dynavit.data.transforms import create_reid_transforms
from dynavit.errors import InputError
from dynavit.losses import MetricLoss, create_metric_loss, gather_with_gradient
from dynavit.metrics.reranking import rerank_blocks
from dynavit.metrics.retrieval import Distance, RetrievalResult, retrieval_metrics
from dynavit.models import PrunedViT
from dynavit.models.heads import Embedding
from dynavit.models.spectra import SpectraEmbedding
from dynavit.runs.loading import foreground_of
from dynavit.tasks.base import Detail, Evaluation, Task
from dynavit.tasks.count_loss import CountLoss
from dynavit.tasks.objective import Objective
from dynavit.tasks.outputs import collect_outputs, selection_metrics


class ReidTask(Task):
    """Finding other images of the same individual.

    Attributes:
        searched, result: of the last evaluation: its embeddings, and what they found query by query.
    """

    classes = "identities"
    metric = "map"
    shown: ClassVar = {
        "map": "mAP {:.2f} %",
        "rank1": "rank-1 {:.2f} %",
        "foreground_recall": "foreground recall {:.3f}",
    }
    searched: Searchable
    result: RetrievalResult

    def open_data(
        self,
        preprocessing: dict[str, Any],
        train: bool = True,
        augment: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> ReidData:
        settings = self.config.data
        size, mean, std = (preprocessing[name] for name in ("image_size", "mean", "std"))
        plain = create_reid_transforms(size, mean, std, preprocessing["interpolation"])[1]
        transforms = (plain, plain)
        if augment and settings.augmentation is not None:
            try:
                transforms = create_reid_transforms(
                    size, mean, std, preprocessing["interpolation"], **settings.augmentation
                )
            except TypeError as error:
                raise InputError(
                    f"data.augmentation={settings.augmentation}: {error}; it takes flip, pad and erase."
                ) from None
        return create_reid_data(
            settings.name,
            settings.root,
            transforms=transforms,
            seed=self.config.seed,
            train=train,
            train_split=settings.train_split,
            corrupt=settings.corrupt,
            options=settings.options,
        )

    def parts(self, data: ReidData) -> Mapping[str, Any]:
        options, parts = self.config.model.side, {}
        if data.spectra:
            parts["spectra"] = len(data.spectra)
        if options is None:
            return parts
        if not _known(data.train_cameras):
            raise InputError(f"model.side={options}: the training data tell no cameras; set model.side=null.")
        cameras, views = (self.metadata(data)[name] for name in ("camera_names", "view_names"))
        return {**parts, "side": {"cameras": len(cameras), "views": max(len(views), 1), **options}}

    def metadata(self, data: ReidData) -> dict[str, Any]:
        """Return the names of the cameras and views in training, by which a model knows them again, and of spectra."""
        names = {
            "camera_names": [data.camera_names[number] for number in _known(data.train_cameras)],
            "view_names": [data.view_names[number] for number in _known(data.train_views)],
        }
        return {**names, "spectra": list(data.spectra)} if data.spectra else names

    def batch_size(self, data: ReidData, processes: int) -> int:
        """Return P x K images: as configured, or with fewer identities where there are too few.

        Raises:
            InputError: K does not divide the batch, or P or K is below 2.
        """
        size, images = self.config.data.batch_size, self.config.data.images_per_identity
        if size % images:
            raise InputError(
                f"data.batch_size={size}, data.images_per_identity={images}: a batch is P identities with K images "
                f"each, so the first has to be a multiple of the second."
            )
        if images < 2 or size // images < 2:
            raise InputError(
                f"data.batch_size={size}, data.images_per_identity={images}: that is {size // images} identities a "
                f"batch with {images} images each, and a triplet needs at least 2 of both."
            )
        # steps_per_epoch visits identities as often as it takes
        batches = 1 if self.config.train.steps_per_epoch else processes * self.config.train.accumulation_steps
        return images * fitting_identities(data.train_identities, size // images, images, batches)

    def sampler(self, data: ReidData, processes: int) -> Sampler[int]:
        size, images = self.batch_size(data, processes), self.config.data.images_per_identity
        steps = self.config.train.steps_per_epoch
        try:
            return PKSampler(
                data.train_identities,
                size // images,
                images,
                seed=self.config.seed,
                batches_per_epoch=steps * processes if steps else None,
                num_processes=processes,
            )
        except InputError as error:
            raise InputError(
                f"data.batch_size={size}, data.images_per_identity={images}: {error} (Here identities_per_batch is "
                f"the first over the second, and batches_per_epoch is train.steps_per_epoch for every process.)"
            ) from None

    def objective(
        self, data: ReidData, model: PrunedViT, count_loss: CountLoss | None, teacher: nn.Module | None
    ) -> Objective:
        return ReidObjective(self.config.loss, model, count_loss, teacher, data)

    def evaluate(
        self,
        models: Sequence[PrunedViT],
        loader: DataLoader[Any],
        accelerator: Accelerator,
        data: ReidData,
        title: str = "",
    ) -> list[Evaluation]:
        def told(model: PrunedViT, indices: Tensor) -> dict[str, Tensor]:
            return self.inputs(model, data, indices)

        for model in models:
            check_spectra(model, data)
        found = collect_outputs(models, loader, accelerator, lambda output: output.float(), told, title)
        foreground = foreground_of(data.validation, None, models[0].adapter.grid_size)
        evaluations = []
        for model, answers in zip(models, found, strict=True):
            searched = Searchable(answers.answers, answers.indices, data)
            result = searched.search()
            metrics = result.summary()
            if self.config.evaluate.rerank:
                reranked = searched.search(rerank_blocks)
                metrics |= {"map_reranked": reranked.mean_ap, "rank1_reranked": reranked.cmc[1]}
            metrics |= selection_metrics(model, answers, foreground)
            detail = Detail(result.average_precision, result.query_ids)
            evaluations.append(Evaluation(metrics, detail, answers.counts, searched))
        return evaluations

    def inputs(self, model: PrunedViT, data: ReidData, indices: Tensor, train: bool = False) -> dict[str, Tensor]:
        return sample_inputs(model, data, indices, train)

    def chance_loss(self, num_classes: int) -> float:
        # a triplet loss that tells nothing apart is softplus(0), or its margin
        return self.config.loss.identity_weight * math.log(num_classes) + 1.0


class ReidObjective(Objective):
    """Identity cross-entropy on the neck's logits, and a metric loss on the features before it.

    Of several spectra the mean over the neck's heads, where DeMo (https://arxiv.org/abs/2412.10650) has the sum.

    Args:
        data: whose cameras the model may be told. The other arguments are those of :class:`Objective`.
    """

    def __init__(
        self, settings: LossConfig, model: PrunedViT, count_loss: CountLoss | None, teacher: Any, data: ReidData
    ) -> None:
        super().__init__(settings, model.selector, count_loss, teacher)

        def create(width: int) -> nn.ModuleDict:
            sizes = {"num_classes": model.num_classes, "embedding_size": width}
            losses = {"metric": create_metric_loss(**sizes, **settings.metric)}
            if settings.center_weight:
                losses["center"] = create_metric_loss(name="center", **sizes)
            return nn.ModuleDict(losses)

        spectra, width = model.num_spectra, model.num_features
        widths = [width] if spectra == 1 else [width, *[width // spectra] * spectra]
        self._losses: nn.Module = _MetricLosses([create(width) for width in widths])
        if any(loss.has_parameters for loss in self._losses.modules() if isinstance(loss, MetricLoss)):
            self.module = self._losses
        self._model, self._data = model, data
        self._statistics: dict[str, Tensor] = {}

    def inputs(self, indices: Tensor) -> dict[str, Tensor]:
        return sample_inputs(self._model, self._data, indices, train=True)

    def task_losses(self, output: Embedding | SpectraEmbedding, targets: Tensor) -> dict[str, tuple[Tensor, float]]:
        heads, smoothing = _heads(output), self.settings.label_smoothing
        each = [F.cross_entropy(head.logits.float(), targets, label_smoothing=smoothing) for head in heads]
        identity = torch.stack(each).mean()
        compare = self.module if self.module is not None else self._losses  # which the accelerator may have wrapped
        found: list[dict[str, tuple[Tensor, dict[str, Tensor]]]] = []
        parts = zip(*(head.features.chunk(self.samples) for head in heads), strict=True)
        # selections of the same batch are not compared with each other
        for features, labels in zip(parts, targets.chunk(self.samples), strict=True):
            if self.settings.metric_across_processes:
                features, labels = tuple(map(gather_with_gradient, features)), gather_with_gradient(labels)
            found.append(compare(features, labels))
        self._statistics = found[0]["metric"][1]
        weights = {"metric": self.settings.metric_weight, "center": self.settings.center_weight}
        terms = {name: (torch.stack([part[name][0] for part in found]).mean(), weights[name]) for name in found[0]}
        return {"identity": (identity, self.settings.identity_weight), **terms}

    def statistics(self) -> dict[str, Tensor]:
        return self._statistics


class _MetricLosses(nn.Module):
    """Losses on the same features, by name, for each head, in one module that can be wrapped for several processes."""

    def __init__(self, heads: Sequence[nn.ModuleDict]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Sequence[Tensor], labels: Tensor) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
        """Return the mean of each loss over the heads, with the statistics of the first head."""
        found = [
            {name: loss(one, labels) for name, loss in losses.items()}  # type: ignore[operator]
            for losses, one in zip(self.heads, features, strict=True)
        ]
        return {
            name: (torch.stack([head[name][0] for head in found]).mean(), statistics)
            for name, (_, statistics) in found[0].items()
        }


def _heads(output: Embedding | SpectraEmbedding) -> list[Embedding]:
    """Return what is learned by: the embedding, and of several spectra that of each as well."""
    if isinstance(output, Embedding):
        return [output]
    each = zip(output.each_features.unbind(dim=1), output.each_logits.unbind(dim=1), strict=True)
    return [Embedding(output.features, output.logits), *(Embedding(*one) for one in each)]


def check_spectra(model: PrunedViT, data: ReidData) -> None:
    """Refuse data of other spectra than a model was trained on; names alone may differ.

    Raises:
        InputError: they are of another number, or in another order.
    """
    learned, given = list(model.metadata.get("spectra", ())), list(data.spectra)
    if max(len(given), 1) != model.num_spectra or (sorted(learned) == sorted(given) and learned != given):
        shown = [", ".join(names) or "one image a sample" for names in (learned, given)]
        raise InputError(
            f"the model was trained on {shown[0]}, and the data have {shown[1]}: give it the same spectra in the same "
            f"order (data.name, data.options.spectra)."
        )


class Searchable:
    """Embeddings of the validation data, told apart into queries and gallery.

    Args:
        features: ``(S, D)`` of the samples at ``indices`` ``(S,)`` of ``data.validation``; unreadable ones are
            missing.
        data: tells queries from gallery, and who is who.

    Attributes:
        query, gallery: int64 indices into ``data.validation``.
        query_features, gallery_features: fp32.
    """

    def __init__(self, features: Tensor, indices: Tensor, data: ReidData) -> None:
        is_query = indices < data.num_query
        self.data = data
        self.query, self.gallery = indices[is_query], indices[~is_query]
        self.query_features, self.gallery_features = features[is_query], features[~is_query]
        # where a query's own file is in the gallery, it is no match of itself
        place = {int(data.image_ids[index]): number for number, index in enumerate(self.gallery.tolist())}
        self._own = torch.tensor([place.get(int(data.image_ids[index]), -1) for index in self.query.tolist()])

    def labels(self, queries: Tensor) -> dict[str, Any]:
        """Return who is who, for these of the queries, as the retrieval functions take it."""
        data, query = self.data, self.query[queries]
        return {
            "query_ids": data.identities[query],
            "gallery_ids": data.identities[self.gallery],
            "query_cameras": data.cameras[query],
            "gallery_cameras": data.cameras[self.gallery],
            "exclude": self._own[queries],
        }

    def search(self, metric: str | Distance = "cosine") -> RetrievalResult:
        """Search the gallery for every query, by the angle between embeddings unless told otherwise."""
        labels = self.labels(torch.arange(len(self.query)))
        return retrieval_metrics(self.query_features, self.gallery_features, **labels, metric=metric)


def sample_inputs(model: PrunedViT, data: ReidData, indices: Tensor, train: bool = False) -> dict[str, Tensor]:
    """Return what a model is told of samples ``(B,)`` beside their images.

    Cameras and views, if it wants them, are numbered as it knows them, -1 where it does not. Of validation samples it
    is told which spectra there are, if some are missing.
    """
    inputs, device = {}, next(model.parameters()).device
    if data.present is not None and not train:
        inputs["present"] = data.present[indices.cpu()].to(device)
    if model.side is None:
        return inputs
    cameras, views = (data.train_cameras, data.train_views) if train else (data.cameras, data.views)
    metadata = model.metadata
    return {
        **inputs,
        "cameras": _renumbered(cameras[indices.cpu()], data.camera_names, metadata["camera_names"]).to(device),
        "views": _renumbered(views[indices.cpu()], data.view_names, metadata["view_names"]).to(device),
    }


def _renumbered(numbers: Tensor, names: Sequence[str], learned: Sequence[str]) -> Tensor:
    """Return numbers ``(B,)`` among ``names`` as numbers among ``learned``: -1 where unknown in either."""
    places = {name: place for place, name in enumerate(learned)}
    return torch.tensor([*(places.get(name, -1) for name in names), -1])[numbers]  # number -1 finds the last


def _known(numbers: Tensor) -> list[int]:
    return [number for number in numbers.unique().tolist() if number >= 0]
