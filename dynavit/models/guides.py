"""What scores are guided by: features that the caller passes, or the other spectra of a sample.

Shapes: B batch, G features, D width of the tokens, M spectra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dynavit.errors import InputError
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
        spectra = torch.arange(self.num_spectra, device=tokens.x.device)
        index = spectra[:-1] + (spectra[:-1] >= spectra[:, None])  # each row but for its own number
        features = tokens.summary.unflatten(0, (-1, self.num_spectra))[:, index].flatten(0, 1)
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


def check_unguided(model: Any, spectra: int = 1) -> None:
    """Refuse scorers that compare tokens with features which nobody would give to the model.

    Args:
        model: a PrunedViT.
        spectra: of each sample in the data, which guide each other.

    Raises:
        InputError: naming the scorer.
    """
    for scorer in model.scorers:
        if scorer.guides not in (0, spectra - 1):
            given = f"each spectrum is guided by {spectra - 1} other(s)" if spectra > 1 else "nothing gives it any here"
            raise InputError(
                f"scorer {scorer.name!r}, guides={scorer.guides}: it compares tokens with features of something else, "
                f"and {given}: set guides={spectra - 1}, or call the model yourself, model(images, guide=...)."
            )


def find_present(model: Any, samples: Any, present: Tensor | None) -> Tensor | None:
    """Return which spectra of each sample there are, ``(B, M)`` bool; None: all.

    Args:
        model: a PrunedViT.
        samples: ``(B, M, C, H, W)``, or the images of a model that sees one a sample.
        present: what the caller passed.

    Raises:
        InputError: something else, spectra of a model that has none, or one that is absent in training.
    """
    count = model.num_spectra
    if present is None and not model.absent:
        return None
    name = "absent" if present is None else "present"
    if count == 1:
        raise InputError(f"{name}: this model sees one image a sample: leave {name} out.")
    if model.training:
        raise InputError(f"{name}: in training every spectrum of a sample has to be there: leave {name} out.")
    shape = samples.shape[:2]
    if present is not None and (present.shape != shape or present.dtype != torch.bool):
        shown = tuple(shape), tuple(present.shape)
        raise InputError(f"present: a bool tensor of shape {shown[0]}, got {present.dtype} {shown[1]}.")
    if not model.absent:
        return present
    there = torch.ones(count, dtype=torch.bool, device=samples.device)
    for number in model.absent:
        there[number] = False
    return there.expand(shape) if present is None else there & present


def checked_absent(absent: Any, num_spectra: int) -> tuple[int, ...]:
    """Return numbers of spectra that are absent.

    Raises:
        InputError: something else, or all of them.
    """
    numbers = tuple(absent) if isinstance(absent, Sequence) and not isinstance(absent, str) else (absent,)
    known = all(isinstance(number, int) and 0 <= number < num_spectra for number in numbers)
    if not known or len(set(numbers)) == max(num_spectra, 2):
        raise InputError(f"absent={absent!r}: numbers from 0 to {num_spectra - 1} of the model's spectra, but not all.")
    return numbers
