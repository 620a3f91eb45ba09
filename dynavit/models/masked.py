"""Mask execution: dropped tokens stay, hidden.

Differentiable; the number kept may differ between images.

Shapes: B batch, P prefix tokens, N original patches, n of them and of tokens made since, D width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from dynavit.models.tokens import Tokens
from dynavit.models.training_probes import Probes
from dynavit.reducers import Reducer, TokenSet
from dynavit.selectors import Selection


class MaskedTokens(Tokens):
    """All tokens, with a mask that hides those dropped; n is N and the tokens made since."""

    execution: ClassVar[Literal["mask", "gather"]] = "mask"

    def select(
        self,
        selection: Selection,
        logits: Tensor,
        reducer: Reducer,
        k: int | None,
        soft: bool,
        probes: Probes | None = None,
    ) -> None:
        keep, alive = selection.keep, self.candidates
        if self.places is not None:
            self.places.before_change(self.patches)
            self.places.kept = self.places.kept & keep[:, : self.places.kept.shape[1]]
        size = self.sizes if reducer.tracks_sizes else None
        mask = selection.mask if self.mask is None else self.mask * selection.mask
        self.set_mask(mask)
        if soft:
            return
        self.alive = alive & keep
        dropped = alive & ~keep
        slots = torch.arange(keep.shape[1], device=keep.device).expand(keep.shape)
        destination = torch.where(keep, slots, -1)
        if reducer.reads_dropped:
            patches, kept_mask, dropped_mask = self.patches, keep.float(), dropped.float()
            if size is not None:  # which is 0 for tokens dropped earlier, so that 1 - mask does no harm there
                kept_mask, dropped_mask = selection.mask, torch.where(keep, 0.0, 1 - selection.mask)
            kept, others = TokenSet(patches, logits, kept_mask, size), TokenSet(patches, logits, dropped_mask, size)
            reduced = reducer(kept, others)
            prefix = self.x[:, : self.adapter.num_prefix_tokens]
            self.x = torch.cat([prefix, torch.where(keep.unsqueeze(-1), reduced.tokens, patches)], dim=1)
            if reduced.size is not None:
                self.size = reduced.size
                self.set_mask(mask, reduced.size)
            if reduced.target is not None:
                destination = torch.where(dropped, reduced.target, destination)
            if reduced.made is not None:
                any_dropped = dropped.any(dim=1, keepdim=True)
                self._append(reduced.made, any_dropped.expand(-1, reduced.made.shape[1]))
        if self.places is not None:
            self.places.move(destination)
