"""The head of re-identification models.

Shapes: B batch, D width of the features.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynavit.errors import InputError

EmbeddingPlace = Literal["after", "before"]


class Embedding(NamedTuple):
    """What a re-identification model returns in training.

    Attributes:
        features: ``(B, D)`` pooled features before the batch norm, for a metric loss.
        logits: ``(B, num_identities)`` of the training identities, for cross-entropy.
    """

    features: Tensor
    logits: Tensor


class BNNeck(nn.Module):
    """A batch norm between the features of the metric loss and the identity classifier.

    A triplet loss wants distances and cross-entropy wants directions; the batch norm lets each work
    on its own side. Luo et al. 2019, https://arxiv.org/abs/1903.07071, section 3.6; its shift stays 0
    and the classifier has no bias, so that the decision hyperplanes pass through the origin.

    In train() this returns :class:`Embedding`. In eval() it returns one tensor, the embedding
    ``(B, D)`` of Euclidean length 1 that is compared between images; the classifier, which knows the
    training identities only, is not run. Autocast is off inside.

    Args:
        num_features: D.
        num_identities: number of training identities.
        embedding: which feature the embedding is, that "after" or that "before" the batch norm.

    Raises:
        InputError: an impossible value here; a batch of one image in training.
    """

    def __init__(self, num_features: int, num_identities: int, embedding: EmbeddingPlace = "after") -> None:
        super().__init__()
        if embedding not in ("after", "before"):
            raise InputError(f"embedding={embedding!r}: the feature 'after' or 'before' the batch norm.")
        self.embedding = embedding
        self.norm = nn.BatchNorm1d(num_features)
        self.norm.bias.requires_grad_(False)
        self.reset(num_identities)

    @property
    def num_features(self) -> int:
        """D, width of the features and of the embedding."""
        return int(self.norm.num_features)

    def reset(self, num_identities: int) -> None:
        """Replace the classifier by a new one for this number of identities.

        Raises:
            InputError: fewer than two.
        """
        if isinstance(num_identities, bool) or not isinstance(num_identities, int) or num_identities < 2:
            raise InputError(f"num_identities={num_identities!r}: a whole number of training identities, at least 2.")
        self.num_identities = num_identities
        self.classifier = self._classifier(self.num_features)

    def _classifier(self, width: int) -> nn.Linear:
        weight = self.norm.weight
        classifier = nn.Linear(width, self.num_identities, bias=False, device=weight.device, dtype=weight.dtype)
        nn.init.normal_(classifier.weight, std=0.001)
        return classifier.train(self.training)

    def _check_batch(self, samples: int) -> None:
        # a synchronised batch norm counts the images of all processes
        if self.training and samples == 1 and type(self.norm) is nn.BatchNorm1d:
            raise InputError("a training batch of one image has no batch statistics: set data.batch_size to 2 or more.")

    def forward(self, features: Tensor) -> Any:
        """Turn pooled features ``(B, D)`` into :class:`Embedding`, or into ``(B, D)`` in eval."""
        self._check_batch(features.shape[0])
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.norm.weight.dtype)
            if not self.training:
                chosen = self.norm(features) if self.embedding == "after" else features
                return functional.normalize(chosen, dim=1)
            return Embedding(features, self.classifier(self.norm(features)))
