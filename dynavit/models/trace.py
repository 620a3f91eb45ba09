"""What happened to the tokens in one forward.

Shapes: B batch, N original patches, n tokens beside the prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dynavit.selectors import Selection


@dataclass(frozen=True)
class StageChoice:
    """What a stage chose among its tokens.

    Attributes:
        candidates: ``(B, n)`` bool: the tokens that there were to choose from.
        positions: ``(B, n)`` original patch index of each; -1 for one that a reducer made of several.
        logits: ``(B, n)`` the scorer's; zeros for selectors that read none.
        probs: ``(B, n)`` fp32: probability of each token to be kept, by the last stage where that removes tokens, by
            all stages so far where selections are soft.
        expected: ``(B,)`` fp32: expected fraction of the original patches kept, which a keep-ratio loss reads; tokens
            that a reducer made do not count.
        decided: ``(B,)`` fp32: likewise, what the mask of this forward adds up to: sampled, with its gradient.
        num_kept: ``(B,)`` int64: tokens kept, those that a reducer makes of others not included.
        log_prob: ``(B,)`` the selector's, where it gives one.
        aux: auxiliary losses of the selector, by name.
    """

    candidates: Tensor
    positions: Tensor
    logits: Tensor
    probs: Tensor
    expected: Tensor
    decided: Tensor
    num_kept: Tensor
    log_prob: Tensor | None
    aux: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        selection: Selection,
        logits: Tensor,
        candidates: Tensor,
        probs: Tensor,
        mask: Tensor,
        positions: Tensor,
        num_patches: int | Tensor,
    ) -> StageChoice:
        """Record a selection.

        Args:
            selection, logits, candidates: the stage's.
            probs, mask: ``(B, n)``, of all stages so far where selections are soft.
            positions: ``(B, n)`` original patch of each token, -1 for what a reducer made, which is no patch.
            num_patches: N, or ``(B,)`` where images differ.
        """
        originals = positions >= 0
        return cls(
            candidates=candidates,
            positions=positions,
            logits=logits,
            probs=probs,
            expected=(probs * originals).sum(dim=1) / num_patches,
            decided=(mask * originals).sum(dim=1) / num_patches,
            num_kept=selection.keep.sum(dim=1),
            log_prob=selection.log_prob,
            aux=selection.aux,
        )


@dataclass(frozen=True)
class StageTrace:
    """What is left after a stage.

    Attributes:
        kept: ``(B, N)`` bool: original patches chosen by every stage so far; of merged ones, those whose index their
            token carries. Where ``aggregate`` mixes the chosen ones, they are chosen all the same.
        length: ``(B,)`` int64: tokens alive beside the prefix.
        choice: None where nothing was chosen: in eval at ratio 1.0, and where tokens merge.
    """

    kept: Tensor
    length: Tensor
    choice: StageChoice | None


@dataclass
class Trace:
    """Record of a pruned forward.

    Attributes:
        stages: what each stage left.
        execution: "mask" or "gather": whether dropped tokens were hidden or removed.
        features: ``(B, n, D)`` tokens after the last norm, without the prefix.
        positions: ``(B, n)`` their original patch indices, of a merged token that of one of its patches; -1 for tokens
            that a reducer appended or mixed.
        source: ``(B, N)`` for each original patch the row of ``features`` that holds it: its own, or the one it was
            fused, squeezed or merged into; -1 where it was dropped, or went into all the mixtures of ``aggregate``.
        weight: ``(B, n)`` how much each counts in pooling: its final mask, or the number of patches merged into it;
            None where all count alike.
    """

    execution: Literal["mask", "gather"]
    features: Tensor
    positions: Tensor
    source: Tensor
    weight: Tensor | None
    stages: list[StageTrace] = field(default_factory=list)

    @property
    def choices(self) -> list[StageChoice]:
        """What was chosen, by the stages that chose."""
        return [stage.choice for stage in self.stages if stage.choice is not None]

    @property
    def counts(self) -> list[Tensor]:
        """Number of patches kept after each stage: S tensors ``(B,)`` int64."""
        return [stage.kept.sum(dim=1) for stage in self.stages]

    @property
    def kept(self) -> list[Tensor]:
        """Original indices of those patches: S tensors ``(B, k)`` int64.

        Ascending; rows with fewer than the largest count are padded with -1.
        """
        return [_indices(stage.kept) for stage in self.stages]

    @property
    def log_prob(self) -> Tensor | None:
        """Log-probability ``(B,)`` of all decisions together; None where the selector gives none."""
        log_probs = [choice.log_prob for choice in self.choices if choice.log_prob is not None]
        return sum(log_probs[1:], log_probs[0]) if log_probs else None

    @property
    def aux(self) -> dict[str, Tensor]:
        """Auxiliary losses of the selectors, by name, summed over the stages."""
        summed: dict[str, Tensor] = {}
        for choice in self.choices:
            for name, loss in choice.aux.items():
                summed[name] = summed[name] + loss if name in summed else loss
        return summed


def _indices(mask: Tensor) -> Tensor:
    n = mask.shape[1]
    position = torch.arange(n, device=mask.device)
    ordered = torch.where(mask, position, n).sort(dim=1).values[:, : int(mask.sum(dim=1).max())]
    return torch.where(ordered < n, ordered, -1)
