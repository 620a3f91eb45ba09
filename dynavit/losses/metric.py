"""Losses on distances between features: batch-hard triplet, and those of pytorch-metric-learning by name.

Shapes: B batch, D width of the features.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynavit.errors import InputError, did_you_mean
from dynavit.functional import full_precision

# base classes, and what takes pairs of views in place of labels
_NOT_OFFERED = ("BaseMetricLossFunction", "GenericPairLoss", "VICRegLoss")


class MetricLoss(nn.Module):
    """A loss on the features of a batch and their identities; made by :func:`create_metric_loss`.

    Everything is computed in fp32 (fp64 for fp64 features) with autocast off. To compare images of
    several processes, give it features and labels that
    :func:`~dynavit.losses.gather.gather_with_gradient` has gathered.

    Args:
        loss: called with features, labels and what was mined, or None.
        distance: one of the library's, by which the hardest images are found.
        mines: the loss is on these alone; otherwise they are for the statistics only.
    """

    def __init__(self, loss: nn.Module, distance: Any, mines: bool = False) -> None:
        super().__init__()
        from pytorch_metric_learning.miners import BatchHardMiner

        self.loss, self.distance = loss, distance
        self.miner = BatchHardMiner(distance=distance)
        self.mines = mines

    @property
    def has_parameters(self) -> bool:
        """Whether the loss learns something itself, such as class centres, which an optimiser has to know."""
        return any(True for _ in self.parameters())

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and, detached, what the features look like.

        Args:
            features: ``(B, D)``.
            labels: ``(B,)`` int64 identities.

        Returns:
            A scalar, and the means over the batch of the features' length (``metric/feature_norm``)
            and of the distances to the hardest positive and negative (``metric/hardest_positive``,
            ``metric/hardest_negative``): a triplet loss's own distance, for others the Euclidean one
            between features of length 1. Only the first where no identity has two images.

        Raises:
            InputError: a loss that compares images, but no image has another one of its identity and
                one of another.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = full_precision(features)
            hardest = self.miner(features.detach(), labels)
            if len(hardest[0]) == 0 and not self.has_parameters:
                raise InputError(
                    f"a metric loss compares images of the same identity and of different ones, but a batch of "
                    f"{len(labels)} images holds {len(labels.unique())} identities: sample several identities and "
                    f"several images of each."
                )
            try:
                loss = self.loss(features, labels, hardest if self.mines else None)
            except TypeError as error:  # an option of another type, which the library first notices here
                raise InputError(
                    f"loss.metric: {type(self.loss).__name__} cannot work with its options: {error}."
                ) from error
            return loss, self._statistics(features.detach(), *hardest)

    def _statistics(self, features: Tensor, anchors: Tensor, positives: Tensor, negatives: Tensor) -> dict[str, Tensor]:
        statistics = {"metric/feature_norm": features.norm(dim=1).mean()}
        compared = self.distance.maybe_normalize(features)
        for name, others in (("positive", positives), ("negative", negatives)):
            length = (compared[anchors] - compared[others]).norm(dim=1)
            if len(length):  # cosine distance 1 - s of features of length 1
                length = length.square() / 2 if self.distance.is_inverted else length
                statistics[f"metric/hardest_{name}"] = length.mean()
        return statistics


class CenterLoss(nn.Module):
    """Half the mean squared distance of the features to the learned centre of their identity.

    Wen et al. 2016, https://doi.org/10.1007/978-3-319-46478-7_31, equation 2. The centres follow their
    gradient, whose size depends on the weight of the loss; so does their speed.
    """

    def __init__(self, num_classes: int, embedding_size: int) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(num_classes, embedding_size))

    def forward(self, features: Tensor, labels: Tensor, mined: None = None) -> Tensor:
        """Return a scalar for features ``(B, D)`` and labels ``(B,)``; nothing is mined."""
        return (features - self.centers.to(features)[labels]).square().sum(dim=1).mean() / 2


def create_metric_loss(
    name: str = "triplet", *, num_classes: int | None = None, embedding_size: int | None = None, **params: Any
) -> MetricLoss:
    """Build a metric loss by name.

    - ``"triplet"``: batch-hard triplet loss, Hermans et al. 2017, https://arxiv.org/abs/1703.07737,
      section 2: from each image the furthest of its identity and the nearest of the others, averaged
      over all images. Options: ``margin`` (0.3), or ``soft_margin=True`` for softplus of the
      difference; ``distance``, "euclidean" or "cosine"; ``normalize``, features to length 1 first.
    - ``"center"``: :class:`CenterLoss`.
    - any other loss of pytorch-metric-learning by its class, ``"CircleLoss"``, or in snake case,
      ``"circle"``, ``"arc_face"``, ``"sup_con"``, ``"multi_similarity"``, with the options of that class.

    Args:
        name: which loss.
        num_classes: number of training identities; for losses that need it, ignored by others.
        embedding_size: width of the features, likewise.
        params: the options.

    Raises:
        InputError: unknown name or option, or impossible value; pytorch-metric-learning is not installed.
    """
    try:
        import pytorch_metric_learning.losses as library
    except ImportError:
        raise InputError(
            "metric losses need pytorch-metric-learning: install it with `pip install pytorch-metric-learning`."
        ) from None
    cls: Any
    if name in _OWN:
        cls, options = _OWN[name], _options(_OWN[name])
    else:
        cls = _find(name, library)
        # its bases take what it does not know itself
        bases = [base for base in reversed(cls.__mro__) if base.__module__.startswith(library.__name__)]
        options = {key: option for base in bases for key, option in _options(base).items()}
    for key in params:
        if key not in options:
            raise InputError(
                f"metric loss {name!r} has no option {key!r}.{did_you_mean(key, options)} Its options: "
                f"{', '.join(options) or 'none'}."
            )
    sizes = {"num_classes": num_classes, "embedding_size": embedding_size}
    required = {key for key, option in options.items() if option.default is option.empty}
    params |= {key: value for key, value in sizes.items() if key in required and value is not None}
    missing = sorted(required - params.keys())
    if missing:
        raise InputError(f"metric loss {name!r} needs {', '.join(missing)}.")
    try:
        loss = cls(**params)
    except InputError:
        raise
    except (TypeError, ValueError, AssertionError, AttributeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"metric loss {name!r} cannot be made with {params}: {reason}.") from error
    return loss if isinstance(loss, MetricLoss) else MetricLoss(loss, _distance("euclidean", normalize=True))


def _triplet(
    margin: float | None = None,
    soft_margin: bool = False,
    distance: Literal["euclidean", "cosine"] = "euclidean",
    normalize: bool = False,
) -> MetricLoss:
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.reducers import MeanReducer

    if soft_margin and margin is not None:
        raise InputError(f"metric loss 'triplet': soft_margin takes the place of margin={margin}; give one of them.")
    if margin is None:
        margin = 0.0 if soft_margin else 0.3
    if isinstance(margin, bool) or not isinstance(margin, int | float) or margin < 0:
        raise InputError(f"metric loss 'triplet': margin={margin!r}; it is a distance, 0 or more.")
    apart = _distance(distance, normalize)
    # the mean over all anchors; the library's own default leaves out those that have no loss left
    loss = TripletMarginLoss(margin=margin, smooth_loss=soft_margin, distance=apart, reducer=MeanReducer())
    return MetricLoss(loss, apart, mines=True)


_OWN: dict[str, Callable[..., Any]] = {"triplet": _triplet, "center": CenterLoss}


def _distance(name: str, normalize: bool) -> Any:
    from pytorch_metric_learning.distances import CosineSimilarity, LpDistance

    class Euclidean(LpDistance):  # type: ignore[misc]
        """Summed directly: by products of matrices, equal features would be 0.03 apart, and more in TF32."""

        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return torch.cdist(query_emb, ref_emb, compute_mode="donot_use_mm_for_euclid_dist")

    if name == "cosine":
        return CosineSimilarity()
    if name == "euclidean":
        return Euclidean(normalize_embeddings=normalize)
    raise InputError(f"metric loss 'triplet': distance={name!r}; choose 'euclidean' or 'cosine'.")


def _find(name: str, library: Any) -> Any:
    """Return the library's loss of that name, whichever way it is spelt."""
    offered = {
        _snake_case(key): value
        for key, value in vars(library).items()
        if inspect.isclass(value) and issubclass(value, library.BaseMetricLossFunction) and key not in _NOT_OFFERED
    }
    for known, cls in offered.items():
        if known.replace("_", "") == _snake_case(name).replace("_", ""):
            return cls
    names = [*_OWN, *sorted(offered)]
    raise InputError(f"unknown metric loss {name!r}.{did_you_mean(name, names)} Known: {', '.join(names)}.")


def _snake_case(name: str) -> str:
    """Return ``multi_similarity`` for ``MultiSimilarityLoss``."""
    name = name.removesuffix("Loss").removesuffix("_loss")
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _options(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters by name that can be set from outside."""
    parameters = inspect.signature(function).parameters
    named = {key: value for key, value in parameters.items() if value.kind is value.POSITIONAL_OR_KEYWORD}
    return {key: value for key, value in named.items() if key != "mat_based_loss"}  # which subclasses set
