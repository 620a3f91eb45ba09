"""Where each original patch is while tokens go and merge.

Shapes: B batch, N original patches, n tokens present beside the prefix, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynavit.functional import take
from dynavit.models.trace import StageTrace


class Places:
    """Follows every original patch, for a trace or for features on the full grid.

    Args:
        valid: ``(B, N)`` bool: patches that are no padding.

    Attributes:
        kept: ``(B, N)`` bool: kept by every stage so far, in a token of its own. Where soft selections, which remove
            nothing, said no, the token is present all the same.
        source: ``(B, N)`` the token that holds each patch now, 0 to n - 1; -1: it was dropped.
        stages: what each stage so far left.
    """

    def __init__(self, valid: Tensor) -> None:
        self.kept = valid
        slots = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
        self.source = slots.masked_fill(~valid, -1)
        self.stages: list[StageTrace] = []
        self._last: Tensor | None = None

    def remember(self, patches: Tensor) -> None:
        """From now on remember the last value of every patch that goes, for :meth:`grid`."""
        self._last = patches

    def before_change(self, patches: Tensor) -> None:
        """Note the tokens ``(B, n, D)`` before some of them go."""
        if self._last is not None:
            self._last = self.grid(patches)

    def grid(self, patches: Tensor) -> Tensor:
        """Return a token for every patch ``(B, N, D)``: what holds it now, or its last value."""
        assert self._last is not None
        held = take(patches, self.source.clamp(min=0))
        return torch.where((self.source >= 0).unsqueeze(-1), held, self._last)

    def move(self, destination: Tensor) -> None:
        """Follow each token ``(B, n)`` to its new place, -1 for none."""
        now = destination.gather(1, self.source.clamp(min=0))
        self.source = torch.where(self.source >= 0, now, -1)

    def keep(self, positions: Tensor, alive: Tensor) -> None:
        """Note that of all patches only those at ``positions`` ``(B, n)`` of tokens ``alive`` have one of their own."""
        num_patches = self.kept.shape[1]
        place = torch.where(alive & (positions >= 0), positions, num_patches)
        marks = torch.zeros(positions.shape[0], num_patches + 1, dtype=torch.bool, device=positions.device)
        self.kept = marks.scatter(1, place, torch.ones_like(place, dtype=torch.bool))[:, :num_patches]


def slots_of(index: Tensor, n: int) -> Tensor:
    """Return for each of n places where it stands in ``index`` ``(B, k)``, or -1."""
    slots = torch.arange(index.shape[1], device=index.device).expand_as(index)
    return index.new_full((index.shape[0], n), -1).scatter(1, index, slots)
