"""Gather execution: dropped tokens are removed, so the following blocks are cheaper.

Where counts differ between images the shorter ones are padded, and the padding is hidden as dropped tokens are in mask
execution. So are the probes that stay behind in training: dropped tokens which the next stage removes for good.

Shapes: B batch, P prefix tokens, n tokens present beside the prefix, k of them kept, q of them not, D width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from dynavit.functional import indices_of, take
from dynavit.models.places import slots_of
from dynavit.models.tokens import Tokens
from dynavit.models.training_probes import Probes
from dynavit.reducers import Merge, Reducer, TokenSet
from dynavit.selectors import Selection


class GatheredTokens(Tokens):
    """Only the tokens still there.

    The mask is None, or hides padding; where scorers learn by it, it hides probes and carries the gradient.
    """

    execution: ClassVar[Literal["mask", "gather"]] = "gather"

    def shorten(self, order: Tensor, k: int, logits: Tensor, reducer: Reducer) -> None:
        """Keep the first ``k`` of every row, the short way of evaluation: equal counts, no mask, no trace.

        Args:
            order: ``(B, n)`` all tokens, those to keep first.
            k: tokens to keep of every image, none of which is padding.
            logits, reducer: as in :meth:`Tokens.select`.
        """
        index = order[:, :k].sort(dim=1).values
        others = order[:, k:].sort(dim=1).values if reducer.reads_dropped else None
        # where nothing is dropped, nothing is made of it
        any_dropped = order.new_zeros(len(order), 1, dtype=torch.bool) if k >= order.shape[1] else None
        self._replace(index, others, logits, reducer, any_dropped=any_dropped)

    def select(
        self,
        selection: Selection,
        logits: Tensor,
        reducer: Reducer,
        k: int | None,
        soft: bool,
        probes: Probes | None = None,
    ) -> None:
        ragged = k is None
        uneven = ragged or self.mask is not None  # rows may hold tokens that are dead already
        keep, dropped = selection.keep, self.candidates & ~selection.keep
        # a reducer that counts sizes gets dead probes, too: their size is 0, but has a gradient
        rest = ~keep if probes is not None and reducer.tracks_sizes else dropped
        n = keep.shape[1]
        k = int(keep.sum(dim=1).max()) if k is None else min(k, n)
        q = int(rest.sum(dim=1).max()) if ragged else n - k
        others = indices_of(rest, q)
        dropped_mask = rest.gather(1, others).float() if uneven else None
        mask: Tensor | None = None
        kept_mask: Tensor | None
        if probes is not None:
            index, weighted = probes.draw(selection.mask, keep, dropped, k)
            kept_mask = weighted.gather(1, index)
            mask = kept_mask if self.mask is None else self.mask.gather(1, index) * kept_mask
            if reducer.tracks_sizes:  # the share of a token that its mask keeps is not merged
                dropped_mask = (1 - weighted).where(rest, 0.0).gather(1, others)
            else:
                kept_mask = mask
        else:
            index = indices_of(keep, k)
            if uneven and not (ragged and len(index) == 1):  # one image alone needs no padding
                mask = keep.gather(1, index).float()
            kept_mask = mask
        if self.places is not None:
            self.places.before_change(self.patches)
        self.alive = None if mask is None else keep.gather(1, index)
        positions = self.positions.gather(1, index)
        any_dropped = rest.any(dim=1, keepdim=True) if uneven or not q else None
        target = self._replace(index, others, logits, reducer, mask, kept_mask, dropped_mask, any_dropped)
        if self.places is not None:
            destination = slots_of(index, n).masked_fill(~keep, -1)
            if target is not None and q:
                target = target.gather(1, slots_of(others, n).clamp(min=0))
                destination = torch.where(rest, target, destination)
            if not reducer.keeps_places:
                destination = destination.masked_fill(keep, -1)
            self.places.keep(positions, keep.gather(1, index))
            self.places.move(destination)

    def _replace(
        self,
        index: Tensor,
        others: Tensor | None,
        logits: Tensor,
        reducer: Reducer,
        mask: Tensor | None = None,
        kept_mask: Tensor | None = None,
        dropped_mask: Tensor | None = None,
        any_dropped: Tensor | None = None,
    ) -> Tensor | None:
        """Go on with the tokens at ``index`` ``(B, k)`` and what the reducer makes of the others ``(B, q)``.

        Args:
            index, others: ascending.
            logits, reducer: as in :meth:`Tokens.select`.
            mask: ``(B, k)`` of those that go on; None: all count.
            kept_mask: ``(B, k)`` likewise, as the reducer is told.
            dropped_mask: ``(B, q)`` which of the others count; None: all do.
            any_dropped: ``(B, 1)`` bool, images in which there are others; None: all.

        Returns:
            The slot that holds each of the others now, ``(B, q)``; None: they are gone.
        """
        num_prefix = self.adapter.num_prefix_tokens
        if not reducer.reads_dropped:
            self.x = take(self.x, _after_prefix(index, num_prefix))
            self._reindex(index, mask)
            return None
        assert others is not None
        prefix = self.x[:, :num_prefix]
        sizes = self.sizes if reducer.tracks_sizes else None

        def rows(index: Tensor, counts: Tensor | None) -> TokenSet:
            size = None if sizes is None else sizes.gather(1, index)
            return TokenSet(take(self.x, index + num_prefix), logits.gather(1, index), counts, size)

        reduced = reducer(rows(index, kept_mask), rows(others, dropped_mask))
        self.size = reduced.size
        if reducer.keeps_places:
            self.x = torch.cat([prefix, reduced.tokens.to(self.x.dtype)], dim=1)
            self._reindex(index, mask, reduced.size)
        else:
            self.x = prefix
            self.alive = None if self.alive is None else self.alive[:, :0]
            self._reindex(index[:, :0], None)
            self._append(reduced.tokens, None)
        if reduced.made is not None:
            self._append(reduced.made, None if any_dropped is None else any_dropped.expand(-1, reduced.made.shape[1]))
        return reduced.target

    def _reindex(self, index: Tensor, mask: Tensor | None, size: Tensor | None = None) -> None:
        self.context = self.adapter.gather(self.context, index)
        self.positions = self.positions.gather(1, index)
        self.set_mask(mask, size)

    def merge(self, merge: Merge, metric: Tensor, k: int) -> None:
        """Merge tokens until ``k`` are left, the most similar ones by their metric ``(B, n, d)``."""
        patches, num_prefix = self.patches, self.adapter.num_prefix_tokens
        merged = merge(patches, metric, self.sizes, k)
        if self.places is not None:
            self.places.before_change(patches)
        self.x = torch.cat([self.x[:, :num_prefix], *merged.parts], dim=1)
        self.size = merged.size
        self._reindex(merged.index, None, merged.size if merge.proportional else None)
        if self.places is not None:
            self.places.keep(self.positions, self.candidates)
            self.places.move(merged.target())


def _after_prefix(index: Tensor, num_prefix: int) -> Tensor:
    """Return rows of the whole sequence: the prefix, then the patches at ``index`` ``(B, k)``."""
    prefix = torch.arange(num_prefix, device=index.device).expand(index.shape[0], -1)
    return torch.cat([prefix, index + num_prefix], dim=1)
