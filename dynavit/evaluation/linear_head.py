"""A classifier for a backbone that has none for the data at hand: logistic regression on its features.

Shapes: M images, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynavit.errors import InputError
from dynavit.models import PrunedViT

_L2 = 1e-4
_ITERATIONS = 1000


@torch.no_grad()
def dense_features(model: PrunedViT, batches: Iterable[Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what the classifier of a model would read, ``(M, D)`` fp32, and the labels ``(M,)``.

    Args:
        model: in eval mode, on ``device``.
        batches: images ``(B, 3, H, W)``, labels and indices; None for batches without a readable image.

    Raises:
        InputError: not one image.
    """
    features, labels = [], []
    for batch in batches:
        if batch is None:
            continue
        images, targets, _ = batch
        tokens = model.forward_features(images.to(device))
        pooled = model.forward_head(tokens, pre_logits=True)
        features.append(pooled.float().cpu().clone())  # not a view, which would keep all tokens
        labels.append(targets)
    if not features:
        raise InputError("the training split holds no image that can be read, so no classifier can be fitted.")
    return torch.cat(features), torch.cat(labels)


def fit_linear_head(features: Tensor, labels: Tensor, num_classes: int, l2: float = _L2) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regression and return weight ``(C, D)`` and bias ``(C,)``, fp32.

    Minimises the mean cross-entropy plus ``l2 / 2`` times the squared weights (not the bias) of standardised
    features, in fp64 from zero, with L-BFGS: deterministic. The standardisation is folded into the result.

    Args:
        features: ``(M, D)``.
        labels: ``(M,)`` int64.
        num_classes: C.
        l2: strength of the penalty.

    Raises:
        InputError: labels of fewer than two classes, or features that are not finite.
    """
    if len(labels.unique()) < 2:
        raise InputError("the training images are all of one class: there is nothing to fit a classifier to.")
    if not bool(features.isfinite().all()):
        raise InputError("the features of the model are not finite: its weights are damaged.")
    mean, deviation = features.double().mean(dim=0), features.double().std(dim=0)
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)  # a feature that is always the same tells nothing
    x = (features.double() - mean) / deviation
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        history_size=20,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    folded = weight.detach() / deviation
    return folded.float(), (bias.detach() - folded @ mean).float()


def set_linear_head(backbone: Any, weight: Tensor, bias: Tensor) -> None:
    """Give a timm model a classifier with these weights; distilled models, which average two, get it twice."""
    backbone.reset_classifier(len(weight))
    classifier = backbone.get_classifier()
    heads: list[Any] = [classifier] if isinstance(classifier, nn.Module) else list(classifier)
    with torch.no_grad():
        for head in heads:
            head.weight.copy_(weight)
            head.bias.copy_(bias)
