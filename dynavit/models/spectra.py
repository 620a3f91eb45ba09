"""Several spectra of one crop, such as colour, near infrared and thermal, through one backbone.

The spectra of a sample follow each other as images of the batch, so that blocks, scorers and reducers know nothing of
them. They meet in two places: where scores are guided by the other spectra, and in the neck.

Shapes: B samples, M spectra, D width of the features, I training identities.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynavit.errors import InputError
from dynavit.models.heads import BNNeck, EmbeddingPlace
from dynavit.numbers import checked_whole


class SpectraEmbedding(NamedTuple):
    """What a model of several spectra returns in training.

    Attributes:
        features: ``(B, M D)``, the spectra's pooled features one after the other, before the batch norm.
        logits: ``(B, I)`` of all of them.
        each_features: ``(B, M, D)``, the same of each spectrum.
        each_logits: ``(B, M, I)``, of each spectrum alone.
    """

    features: Tensor
    logits: Tensor
    each_features: Tensor
    each_logits: Tensor


class SpectraNeck(BNNeck):
    """A :class:`~dynavit.models.heads.BNNeck` for features of several spectra, and one for each spectrum.

    The heads of DeMo (Wang et al. 2025, https://arxiv.org/abs/2412.10650) without its mixture of experts: features are
    concatenated, and the concatenation and each spectrum have a classifier and losses of their own. A batch norm acts
    on each number by itself, so that they share it.

    In eval() the embedding ``(B, M D)`` of Euclidean length 1 holds each spectrum's, of equal length, and zeros for
    one that is absent: the cosine of two samples is that of the spectra that both have, the smaller the fewer.

    Args:
        num_features: D.
        num_identities: I.
        num_spectra: M.
        embedding: as of a BNNeck.

    Raises:
        InputError: an impossible value here; one sample alone in training.
    """

    def __init__(
        self, num_features: int, num_identities: int, num_spectra: int, embedding: EmbeddingPlace = "after"
    ) -> None:
        self.num_spectra = checked_whole("spectra", num_spectra, 2)  # before what the base class builds by it
        super().__init__(num_features * num_spectra, num_identities, embedding)

    def reset(self, num_identities: int) -> None:
        super().reset(num_identities)
        width = self.num_features // self.num_spectra
        self.each = nn.ModuleList(self._classifier(width) for _ in range(self.num_spectra))

    def forward(self, features: Tensor, present: Tensor | None = None) -> Any:
        """Turn pooled features ``(B M, D)`` into :class:`SpectraEmbedding`, or into ``(B, M D)`` in eval.

        Args:
            features: sample by sample.
            present: ``(B, M)`` bool, which spectra there are; None: all.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.norm.weight.dtype).unflatten(0, (-1, self.num_spectra))
            joined = features.flatten(1)
            if self.training:
                self._check_batch(joined.shape[0])
                normed = self.norm(joined)
                of_each = normed.view_as(features).unbind(dim=1)
                each = [classify(one) for classify, one in zip(self.each, of_each, strict=True)]
                return SpectraEmbedding(joined, self.classifier(normed), features, torch.stack(each, dim=1))
            chosen = self.norm(joined) if self.embedding == "after" else joined
            unit = F.normalize(chosen.view_as(features), dim=2)
            if present is not None:
                unit = unit * present.unsqueeze(2)
            return F.normalize(unit.flatten(1), dim=1)


def as_images(samples: Tensor, num_spectra: int, present: Tensor | None = None) -> Tensor:
    """Return samples ``(B, M, C, H, W)`` as images ``(B M, C, H, W)``, black where they are not present ``(B, M)``.

    Raises:
        InputError: something else.
    """
    if not isinstance(samples, Tensor) or samples.ndim != 5 or samples.shape[1] != num_spectra:
        got = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise InputError(
            f"this model sees {num_spectra} spectra of each sample: call it with a tensor (B, {num_spectra}, C, H, W), "
            f"got {got}. Of a spectrum that is missing any pixels will do, with present=... (B, {num_spectra})."
        )
    if present is not None:  # whatever stands there, NaN too, is not seen
        samples = samples.masked_fill(~present[:, :, None, None, None], 0.0)
    return samples.flatten(0, 1)


def each_of(numbers: Any, samples: Any, num_spectra: int) -> Any:
    """Return the number of each sample ``(B,)`` for each of its images, ``(B M,)``; all else as it is."""
    of_samples = isinstance(numbers, Tensor) and numbers.ndim == 1 and numbers.shape[0] == samples.shape[0]
    return numbers.repeat_interleave(num_spectra) if of_samples else numbers
