"""The token sequence on its way through the blocks, in the two executions.

*mask*: every token stays in the tensor and those dropped are hidden from attention and pooling. It
is differentiable, and the number kept may differ between images. *gather*: dropped tokens are
removed, so the following blocks are cheaper. Where counts differ between images the shorter ones are
padded, and the padding is hidden as dropped tokens are in the first execution.

Shapes: B batch, P prefix tokens, N original patches, n tokens present beside the prefix, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dynavit.functional import take
from dynavit.models.adapters import BackboneAdapter
from dynavit.models.adapters.attention import AttentionView
from dynavit.models.mask import MaskForm, attention_mask, proportional_bias
from dynavit.models.places import Places, slots_of
from dynavit.reducers import Merge, Reducer, TokenSet
from dynavit.selectors import Selection


class Tokens(ABC):
    """All there is to know of the tokens between two blocks.

    Args:
        x: ``(B, P + N, D)`` as embedded.
        context: what the adapter needs beside them.
        adapter: runs the blocks.
        training: whether the model trains.
        form: how masks enter attention in training.

    Attributes:
        x: ``(B, P + n, D)``.
        num_patches: N; ``(B,)`` int64 where images differ.
        positions: ``(B, n)`` original patch index of each token; -1 for one that a reducer made of several.
        alive: ``(B, n)`` bool: neither removed by an earlier stage nor padding; None: all are.
        mask: ``(B, n)`` fp32: the product of the stages' masks; None where nothing is masked.
        size: ``(B, n)`` fp32: how many patches each token was merged from; None while nothing was merged.
        probs: ``(B, n)`` fp32: product of the probabilities of soft selections so far; None before the first.
        places: follows the original patches; None unless somebody wants to know.
    """

    def __init__(self, x: Tensor, context: Any, adapter: BackboneAdapter, *, training: bool, form: MaskForm) -> None:
        self.x, self.context, self.adapter = x, context, adapter
        self.training, self.form = training, form
        shape = (x.shape[0], x.shape[1] - adapter.num_prefix_tokens)
        valid = adapter.valid(context)
        if valid is not None and not torch.compiler.is_compiling() and bool(valid.all()):
            valid = None  # nothing is padded
        self.num_patches: Any = shape[1] if valid is None else valid.sum(dim=1)
        self.positions = torch.arange(shape[1], device=x.device).expand(shape)
        self.alive = valid
        self.mask: Tensor | None = None
        self.size: Tensor | None = None
        self.probs: Tensor | None = None
        self._bias: Tensor | None = None
        self._entered: Tensor | None = None
        self.places: Places | None = None
        self.hide(None if valid is None else valid.float())

    @property
    def patches(self) -> Tensor:
        """The tokens beside the prefix, ``(B, n, D)``."""
        return self.x[:, self.adapter.num_prefix_tokens :]

    @property
    def candidates(self) -> Tensor:
        """Which tokens are alive, ``(B, n)`` bool."""
        return torch.ones_like(self.positions, dtype=torch.bool) if self.alive is None else self.alive

    @property
    def weight(self) -> Tensor | None:
        """How much each token counts in pooling, ``(B, n)``; None: all alike."""
        return self.mask if self.size is None else self.size

    def block(self, number: int) -> None:
        """Run a block."""
        self.x = self.adapter.block(number, self.x, self.context, self._bias)

    def attention(self, number: int) -> None:
        """Run the first half of a block."""
        self._entered, self.x = self.x, self.adapter.attention(number, self.x, self.context, self._bias)

    def mlp(self, number: int) -> None:
        """Run the second half of a block."""
        self._entered, self.x = None, self.adapter.mlp(number, self.x)

    def view(self, number: int) -> AttentionView:
        """Return what a block's attention says of the tokens as they entered that block, or are about to."""
        entered = self.x if self._entered is None else self._entered
        return self.adapter.view(number, entered, self.context, self._bias)

    @abstractmethod
    def select(self, selection: Selection, logits: Tensor, reducer: Reducer, k: int | None, soft: bool) -> None:
        """Carry out what a stage decided.

        Args:
            selection: the decision over the tokens present.
            logits: ``(B, n)``, the scores behind it.
            reducer: what becomes of the others.
            k: tokens that it keeps in every row; None where counts differ.
            soft: it hides in part and removes nothing.
        """

    def hide(self, mask: Tensor | None) -> None:
        """Hide tokens from now on by a mask ``(B, n)``; None: hide none."""
        self.mask = mask
        self._bias = None
        if mask is not None:
            self._bias = attention_mask(mask, self.adapter.num_prefix_tokens, self.training, self.form)

    def _append(self, made: Tensor, exists: Tensor | None) -> None:
        """Add tokens ``(B, m, D)`` that stand at no place, where they exist ``(B, m)`` bool; None: everywhere."""
        count = made.shape[1]
        self.x = torch.cat([self.x, made.to(self.x.dtype)], dim=1)
        self.context = self.adapter.extend(self.context, count)
        if exists is None and self.alive is None and self.mask is None:
            self.positions = pad(self.positions, (0, count), value=-1)
            return
        mask = self.candidates.float() if self.mask is None else self.mask
        exists = torch.ones_like(made[..., 0], dtype=torch.bool) if exists is None else exists
        self.alive = torch.cat([self.candidates, exists], dim=1)
        self.positions = pad(self.positions, (0, count), value=-1)
        self.hide(torch.cat([mask, exists.to(mask.dtype)], dim=1))


class MaskedTokens(Tokens):
    """All tokens, with a mask that hides those dropped; n is N and the tokens made since."""

    def select(self, selection: Selection, logits: Tensor, reducer: Reducer, k: int | None, soft: bool) -> None:
        keep, alive = selection.keep, self.candidates
        if self.places is not None:
            self.places.before_change(self.patches)
            self.places.kept = self.places.kept & keep[:, : self.places.kept.shape[1]]
        self.hide(selection.mask if self.mask is None else self.mask * selection.mask)
        if soft:
            return
        self.alive = alive & keep
        dropped = alive & ~keep
        slots = torch.arange(keep.shape[1], device=keep.device).expand(keep.shape)
        destination = torch.where(keep, slots, -1)
        if reducer.reads_dropped:
            patches = self.patches
            reduced = reducer(TokenSet(patches, logits, keep.float()), TokenSet(patches, logits, dropped.float()))
            prefix = self.x[:, : self.adapter.num_prefix_tokens]
            self.x = torch.cat([prefix, torch.where(keep.unsqueeze(-1), reduced.tokens, patches)], dim=1)
            if reduced.target is not None:
                destination = torch.where(dropped, reduced.target, destination)
            if reduced.made is not None:
                some = dropped.any(dim=1, keepdim=True)
                self._append(reduced.made, some.expand(-1, reduced.made.shape[1]))
        if self.places is not None:
            self.places.move(destination)


class GatheredTokens(Tokens):
    """Only the tokens still there.

    In training the kept tokens' mask has the value 1 and carries the gradient; in eval it is None, or hides padding.
    """

    def shorten(self, order: Tensor, k: int, logits: Tensor, reducer: Reducer) -> None:
        """Keep the first ``k`` of every row, and do nothing else: no mask, no record.

        Args:
            order: ``(B, n)`` all tokens, those to keep first.
            k: tokens to keep of every image, none of which is padding.
            logits, reducer: as in :meth:`select`.
        """
        index = order[:, :k].sort(dim=1).values
        others = order[:, k:].sort(dim=1).values if reducer.reads_dropped else None
        self._replace(index, others, logits, reducer)

    def select(self, selection: Selection, logits: Tensor, reducer: Reducer, k: int | None, soft: bool) -> None:
        ragged = k is None
        uneven = ragged or self.mask is not None  # rows may hold tokens that are dead already
        keep, rest = selection.keep, self.candidates & ~selection.keep
        n = keep.shape[1]
        k = int(keep.sum(dim=1).max()) if k is None else min(k, n)
        q = int(rest.sum(dim=1).max()) if ragged else n - k
        index, others = _first(keep, k), _first(rest, q)
        mask = None
        if self.training:
            mask = selection.mask.gather(1, index)
            mask = mask if self.mask is None else self.mask.gather(1, index) * mask
        elif ragged and len(index) > 1:  # one image alone needs no padding
            mask = keep.gather(1, index).float()
        if self.places is not None:
            self.places.before_change(self.patches)
        self.alive = keep.gather(1, index) if uneven and mask is not None else None
        positions = self.positions.gather(1, index)
        real = rest.gather(1, others).float() if uneven else None
        some = rest.any(dim=1, keepdim=True) if uneven or not q else None
        target = self._replace(index, others, logits, reducer, mask, real, some)
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
        real: Tensor | None = None,
        some: Tensor | None = None,
    ) -> Tensor | None:
        """Go on with the tokens at ``index`` ``(B, k)`` and what the reducer makes of the others ``(B, q)``.

        Args:
            index, others: ascending.
            logits, reducer: as in :meth:`select`.
            mask: ``(B, k)`` of those that go on; None: all count.
            real: ``(B, q)`` which of the others count; None: all do.
            some: ``(B, 1)`` bool, images in which there are others; None: all.

        Returns:
            The slot that holds each of the others now, ``(B, q)``; None: they are gone.
        """
        num_prefix = self.adapter.num_prefix_tokens
        if not reducer.reads_dropped:
            self.x = take(self.x, _after_prefix(index, num_prefix))
            self._stand_at(index, mask)
            return None
        assert others is not None
        patches, prefix = self.patches, self.x[:, :num_prefix]
        reduced = reducer(
            TokenSet(take(patches, index), logits.gather(1, index), mask),
            TokenSet(take(patches, others), logits.gather(1, others), real),
        )
        if reducer.keeps_places:
            self.x = torch.cat([prefix, reduced.tokens.to(self.x.dtype)], dim=1)
            self._stand_at(index, mask)
        else:
            self.x = prefix
            self.alive = None if self.alive is None else self.alive[:, :0]
            self._stand_at(index[:, :0], None)
            self._append(reduced.tokens, None)
        if reduced.made is not None:
            self._append(reduced.made, None if some is None else some.expand(-1, reduced.made.shape[1]))
        return reduced.target

    def _stand_at(self, index: Tensor, mask: Tensor | None) -> None:
        self.context = self.adapter.gather(self.context, index)
        self.positions = self.positions.gather(1, index)
        self.hide(mask)

    def merge(self, merge: Merge, metric: Tensor, k: int) -> None:
        """Merge tokens until ``k`` are left, the most similar ones by their metric ``(B, n, d)``."""
        patches, num_prefix = self.patches, self.adapter.num_prefix_tokens
        size = patches.new_ones(patches.shape[:2], dtype=torch.float32) if self.size is None else self.size
        merged = merge(patches, metric, size, k)
        if self.places is not None:
            self.places.before_change(patches)
        self.x = torch.cat([self.x[:, :num_prefix], merged.tokens], dim=1)
        self._stand_at(merged.index, None)
        self.size = merged.size
        if merge.proportional:
            self._bias = proportional_bias(merged.size, num_prefix, self.x.dtype)
        if self.places is not None:
            self.places.keep(self.positions, self.candidates)
            self.places.move(merged.target())


def _first(chosen: Tensor, count: int) -> Tensor:
    """Return the positions ``(B, count)`` of those chosen ``(B, n)``, ascending; others where there are fewer."""
    return Selection(chosen, chosen, chosen).indices(count)


def _after_prefix(index: Tensor, num_prefix: int) -> Tensor:
    """Return rows of the whole sequence: the prefix, then the patches at ``index`` ``(B, k)``."""
    prefix = torch.arange(num_prefix, device=index.device).expand(index.shape[0], -1)
    return torch.cat([prefix, index + num_prefix], dim=1)
