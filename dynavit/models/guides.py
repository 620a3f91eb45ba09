"""What scores are guided by: features that the caller passes, or the other spectra of a sample.

Shapes: B batch, G features, D width of the tokens, M spectra.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.functional import masked_mean
from dynavit.models.tokens import Tokens


class Guide(Protocol):
    """Says at each stage what a guided scorer compares the tokens with."""

    def at(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Return features ``(B, G, D)``, and which of them there are, ``(B, G)`` bool; None: all."""


@dataclass(frozen=True)
class Given:
    """The same features ``(B, G, D)`` at each stage."""

    features: Tensor

    def at(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Return them."""
        return self.features, None


@dataclass(frozen=True)
class OtherSpectra:
    """The other spectra of each one's sample, as they are at the stage: class tokens, or means of the patches.

    Attributes:
        num_spectra: M, which follow each other in the batch.
        present: ``(B, M)`` bool, of samples, which there are; None: all.
    """

    num_spectra: int
    present: Tensor | None = None

    def at(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Return the features ``(B M, M - 1, D)`` of the others, and which there are, ``(B M, M - 1)``."""
        patches, weight, summary = tokens.patches, tokens.weight, tokens.class_token
        if summary is None:
            summary = patches.mean(dim=1) if weight is None else masked_mean(patches, weight)
        count = self.num_spectra
        others = [[other for other in range(count) if other != own] for own in range(count)]
        index = torch.tensor(others, device=summary.device)
        features = summary.unflatten(0, (-1, count))[:, index].flatten(0, 1)
        return features, None if self.present is None else self.present[:, index].flatten(0, 1)


def find_guide(model: Any, features: Tensor | None, present: Tensor | None) -> Guide | None:
    """Return what guides the scores of a forward.

    Args:
        model: a PrunedViT.
        features: what the caller passed as ``guide``.
        present: what :func:`find_present` returned.

    Raises:
        InputError: features that nothing reads.
    """
    count, reads = model.num_spectra, any(scorer.guides for scorer in model.scorers)
    if features is not None:
        if count > 1:
            raise InputError("guide: in this model the spectra guide each other: leave guide out.")
        if not reads:
            raise InputError(
                "guide: no scorer of this model compares tokens with features that it is given: leave guide out, or "
                "create the model with scorer={'name': 'guided', 'guides': G}."
            )
        return Given(features)
    return OtherSpectra(count, present) if reads and count > 1 else None


def find_present(model: Any, tokens: Tokens, present: Tensor | None) -> Tensor | None:
    """Return which spectra of each sample there are, ``(B, M)`` bool; None: all.

    Args:
        model: a PrunedViT.
        tokens: as embedded.
        present: what the caller passed.

    Raises:
        InputError: something else, spectra of a model that has none, or one that is absent in training.
    """
    count = model.num_spectra
    if present is None and not model.absent:
        return None
    if count == 1:
        raise InputError("present: this model sees one image a sample: leave present out.")
    if model.training:
        raise InputError("present: in training every spectrum of a sample has to be there: leave present out.")
    shape, device = (tokens.x.shape[0] // count, count), tokens.x.device
    if present is not None and (present.shape != shape or present.dtype != torch.bool):
        raise InputError(f"present: a bool tensor of shape {shape}, got {present.dtype} {tuple(present.shape)}.")
    there = [number not in model.absent for number in range(count)]
    if not any(there) or not set(model.absent) <= set(range(count)):
        raise InputError(f"absent={tuple(model.absent)}: some of 0 to {count - 1}, the model's spectra, but not all.")
    everywhere = torch.tensor(there, device=device).expand(shape)
    return everywhere if present is None else everywhere & present.to(device)
