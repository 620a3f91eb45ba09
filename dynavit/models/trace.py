"""What happened to the tokens in one forward."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Trace:
    """Record of a pruned forward. B batch, N original patches, S stages run, n tokens beside the prefix.

    Attributes:
        masks: S tensors ``(B, N)`` bool: which original patches still have a token of their own after each stage.
        expected: ``(B,)`` fp32 for each stage that selected (in eval one at ratio 1.0 does not; merging
            never does): expected fraction of the original patches kept, by the selector's probabilities; what
            a keep-ratio loss reads.
        decided: likewise, the fraction that the mask of this forward adds up to: sampled, with its gradient.
        probs: ``(B, n)`` fp32 for each stage that selected: probabilities to be kept so far.
        scores: likewise, their raw logits; zeros for selectors that read none.
        candidates: likewise, bool: the tokens that there were to choose from.
        lengths: S tensors ``(B,)`` int64: tokens alive after each stage, beside the prefix.
        log_prob: ``(B,)`` sum over the stages of the selector's ``log_prob``; None where it gives none.
        features: ``(B, n, D)`` tokens after the last norm, without the prefix.
        positions: ``(B, n)`` their original patch indices; -1 for tokens that a reducer made of several.
        source: ``(B, N)`` for each original patch the row of ``features`` that holds it: its own, or the one it was
            fused, squeezed or merged into; -1 where it was dropped, or went into all the mixtures of ``aggregate``.
        mask: ``(B, n)`` how much each counts in pooling: their final mask, or the number of patches merged into each;
            None where all count alike.
        aux: auxiliary losses of the selectors, by name.
    """

    masks: list[Tensor] = field(default_factory=list)
    expected: list[Tensor] = field(default_factory=list)
    decided: list[Tensor] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    candidates: list[Tensor] = field(default_factory=list)
    lengths: list[Tensor] = field(default_factory=list)
    log_prob: Tensor | None = None
    features: Tensor | None = None
    positions: Tensor | None = None
    source: Tensor | None = None
    mask: Tensor | None = None
    aux: dict[str, Tensor] = field(default_factory=dict)

    @property
    def counts(self) -> list[Tensor]:
        """Number of patches with a token of their own after each stage: S tensors ``(B,)`` int64."""
        return [mask.sum(dim=1) for mask in self.masks]

    @property
    def kept(self) -> list[Tensor]:
        """Original indices of those patches: S tensors ``(B, k)`` int64.

        Ascending; rows with fewer than the largest count are padded with -1.
        """
        return [_indices(mask) for mask in self.masks]


def _indices(mask: Tensor) -> Tensor:
    n = mask.shape[1]
    position = torch.arange(n, device=mask.device)
    ordered = torch.where(mask, position, n).sort(dim=1).values[:, : int(mask.sum(dim=1).max())]
    return torch.where(ordered < n, ordered, -1)
