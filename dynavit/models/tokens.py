"""The token sequence on its way through the blocks, in the two executions.

*mask*: every token stays in the tensor and those dropped are hidden from attention and pooling. It
is differentiable, and the number kept may differ between images. *gather*: dropped tokens are
removed, so the following blocks are cheaper. Where counts differ between images the shorter ones are
padded, and the padding is hidden as dropped tokens are in the first execution.

Shapes: B batch, P prefix tokens, N original patches, n tokens present beside the prefix, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from dynavit.models.adapters import BackboneAdapter
from dynavit.reducers import Merge, Reducer, TokenSet
from dynavit.selectors import Selection
from dynavit.selectors.functional import log_mask

MaskForm = Literal["key", "identity"]


class Tokens(ABC):
    """All there is to know of the tokens between two blocks.

    Attributes:
        x: ``(B, P + n, D)``.
        positions: ``(B, n)`` original patch index of each token; -1 for one that a reducer made of several.
        alive: ``(B, n)`` bool: neither removed by an earlier stage nor padding.
        mask: ``(B, n)`` fp32: the product of the stages' masks; None where nothing is masked.
        kept: ``(B, N)`` bool over the original patches: kept by every stage so far. Differs from
            ``alive`` where soft selections, which remove nothing, said no.
        source: ``(B, N)`` for each original patch the token that holds it now, 0 to n - 1, or -1: it was dropped.
        size: ``(B, n)`` fp32: how many patches each token was merged from; None while nothing was merged.
        expected: ``(B,)`` fp32: expected fraction of the original patches kept so far.
        probs: ``(B, n)`` fp32: probability of each token present to have been kept so far, by the last stage
            where that removes tokens, by all of them where selections are soft.
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
        self.alive = self.kept = torch.ones(shape, dtype=torch.bool, device=x.device) if valid is None else valid
        self.source = self.positions if valid is None else self.positions.masked_fill(~valid, -1)
        self.mask: Tensor | None = None if valid is None else valid.float()
        self.size: Tensor | None = None
        self.key_bias: Tensor | None = None
        self.expected: Tensor | None = None
        self.probs: Tensor | None = None
        self._last: Tensor | None = None

    @property
    def patches(self) -> Tensor:
        """The tokens beside the prefix, ``(B, n, D)``."""
        return self.x[:, self.adapter.num_prefix_tokens :]

    @property
    def _prefix(self) -> Tensor:
        return self.x[:, : self.adapter.num_prefix_tokens]

    @abstractmethod
    def select(self, selection: Selection, reducer: Reducer, logits: Tensor, *, k: int | None, soft: bool) -> None:
        """Carry out what a stage decided.

        Args:
            selection: the decision over the tokens present.
            reducer: what becomes of the others.
            logits: ``(B, n)``, the scores behind the decision.
            k: tokens that it keeps in every row; None where counts differ.
            soft: it hides in part and removes nothing.
        """

    def attention_mask(self) -> Tensor | None:
        """Return what the next block's attention is given: None, booleans or an additive bias."""
        num_prefix = self.adapter.num_prefix_tokens
        mask = None if self.mask is None else attention_mask(self.mask, num_prefix, self.training, self.form)
        if self.key_bias is None:
            return mask
        bias = torch.nn.functional.pad(self.key_bias, (num_prefix, 0))[:, None, None, :]
        assert mask is None  # merging and masking exclude each other
        return bias.to(self.x.dtype)

    def remember(self) -> None:
        """From now on remember the last value of every patch that goes, for :meth:`grid`."""
        self._last = self.patches

    def grid(self) -> Tensor:
        """Return a token for every original patch ``(B, N, D)``: what holds it now, or its last value."""
        assert self._last is not None
        held = _taken(self.patches, self.source.clamp(min=0))
        return torch.where((self.source >= 0).unsqueeze(-1), held, self._last)

    def _before_change(self) -> None:
        if self._last is not None:
            self._last = self.grid()

    def _move(self, destination: Tensor) -> None:
        """Follow each token ``(B, n)`` to its new place, -1 for none."""
        now = destination.gather(1, self.source.clamp(min=0))
        self.source = torch.where(self.source >= 0, now, -1)

    def _append(self, made: Tensor, exists: Tensor | None) -> None:
        """Add tokens ``(B, m, D)`` that stand at no place, where they exist ``(B, m)`` bool; None: everywhere."""
        shape = made.shape[:2]
        self.x = torch.cat([self.x, made.to(self.x.dtype)], dim=1)
        self.context = self.adapter.extend(self.context, shape[1])
        self.positions = torch.cat([self.positions, self.positions.new_full(shape, -1)], dim=1)
        if exists is None:
            exists = self.alive.new_ones(shape)
        elif self.mask is None:
            self.mask = self.alive.float()
        self.alive = torch.cat([self.alive, exists], dim=1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, exists.to(self.mask.dtype)], dim=1)


class MaskedTokens(Tokens):
    """All tokens, with a mask that hides those dropped; n is N and the tokens made since."""

    def select(self, selection: Selection, reducer: Reducer, logits: Tensor, *, k: int | None, soft: bool) -> None:
        keep, alive = selection.keep, self.alive
        self._before_change()
        self.kept = self.kept & keep[:, : self.kept.shape[1]]
        self.mask = selection.mask if self.mask is None else self.mask * selection.mask
        if soft and self.probs is not None:
            self.probs = self.probs * selection.probs
        else:  # a hard selection's probabilities are already 0 on what is dead
            self.probs = selection.probs
        self.expected = self.probs.sum(dim=1) / self.num_patches
        if soft:
            return
        self.alive = alive & keep
        dropped = alive & ~keep
        slots = torch.arange(keep.shape[1], device=keep.device).expand(keep.shape)
        destination = torch.where(keep, slots, -1)
        if reducer.reads_dropped:
            patches = self.patches
            reduced = reducer(TokenSet(patches, logits, keep.float()), TokenSet(patches, logits, dropped.float()))
            self.x = torch.cat([self._prefix, torch.where(keep.unsqueeze(-1), reduced.tokens, patches)], dim=1)
            if reduced.target is not None:
                destination = torch.where(dropped, reduced.target, destination)
            if reduced.made is not None:
                some = dropped.any(dim=1, keepdim=True)
                self._append(reduced.made, some.expand(-1, reduced.made.shape[1]))
        self._move(destination)


class GatheredTokens(Tokens):
    """Only the tokens still there.

    In training the kept tokens' mask has the value 1 and carries the gradient; in eval it is None, or hides padding.
    """

    def select(self, selection: Selection, reducer: Reducer, logits: Tensor, *, k: int | None, soft: bool) -> None:
        ragged = k is None
        uneven = ragged or self.mask is not None  # rows may hold tokens that are dead already
        keep, rest = selection.keep, self.alive & ~selection.keep
        n = keep.shape[1]
        k = int(keep.sum(dim=1).max()) if k is None else min(k, n)
        q = int(rest.sum(dim=1).max()) if ragged else n - k
        index, others = _first(keep, k), _first(rest, q)
        self._before_change()
        self.probs = selection.probs
        self.expected = self.probs.sum(dim=1) / self.num_patches

        mask = None
        if self.training:
            mask = selection.mask.gather(1, index)
            mask = mask if self.mask is None else self.mask.gather(1, index) * mask
        elif ragged and len(index) > 1:  # one image alone needs no padding
            mask = keep.gather(1, index).float()
        kept = TokenSet(_taken(self.patches, index), logits.gather(1, index), mask)
        dropped = None
        if reducer.reads_dropped:
            real = rest.gather(1, others).float() if uneven else None
            dropped = TokenSet(_taken(self.patches, others), logits.gather(1, others), real)
        reduced = reducer(kept, dropped)

        destination = _inverse(index, n).masked_fill(~keep, -1)
        if reduced.target is not None and q:
            target = reduced.target.gather(1, _inverse(others, n).clamp(min=0))
            destination = torch.where(rest, target, destination)
        positions = self.positions.gather(1, index)
        self.alive = keep.gather(1, index)
        self.kept = _marked(positions, self.alive, self.kept.shape[1])
        if not reducer.keeps_places:
            destination = destination.masked_fill(keep, -1)
            index, positions, mask = index[:, :0], positions[:, :0], None
            self.alive = self.alive[:, :0]
        self.context, self.positions, self.mask = self.adapter.gather(self.context, index), positions, mask
        if reducer.keeps_places:
            self.x = torch.cat([self._prefix, reduced.tokens.to(self.x.dtype)], dim=1)
        else:
            self.x = self._prefix
            self._append(reduced.tokens, None)
        if reduced.made is not None:
            some = rest.any(dim=1, keepdim=True).expand(-1, reduced.made.shape[1])
            self._append(reduced.made, some if uneven or not q else None)
        self._move(destination)

    def merge(self, reducer: Merge, metric: Tensor, k: int) -> None:
        """Merge tokens until ``k`` are left, the most similar ones by their metric ``(B, n, d)``."""
        patches = self.patches
        size = patches.new_ones(patches.shape[:2], dtype=torch.float32) if self.size is None else self.size
        merged = reducer(patches, metric, size, k)
        self._before_change()
        self.x = torch.cat([self._prefix, merged.tokens], dim=1)
        self.context = self.adapter.gather(self.context, merged.index)
        self.positions = self.positions.gather(1, merged.index)
        self.alive = torch.ones_like(self.positions, dtype=torch.bool)
        self.kept = _marked(self.positions, self.alive, self.kept.shape[1])
        self.size = merged.size
        self.key_bias = merged.size.log() if reducer.proportional else None
        self._move(merged.target)


def attention_mask(mask: Tensor, num_prefix: int, training: bool, form: MaskForm) -> Tensor:
    """Hide tokens ``(B, n)`` from attention by their mask.

    Without gradients this is a boolean mask ``(B, 1, 1, P + n)``. In training it is the additive
    bias :func:`~dynavit.selectors.functional.log_mask`, either over keys alone, ``(B, 1, 1, P + n)``,
    or with DynamicViT's identity term, ``(B, 1, P + n, P + n)``, by which a token always sees itself.
    The values agree in every row that is read; the gradients to kept tokens do not.
    """
    keys = torch.cat([mask.new_ones(mask.shape[0], num_prefix), mask], dim=1)[:, None, None, :]
    if not training:
        return keys > 0.5
    if form == "identity":
        itself = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
        keys = keys + (1 - keys) * itself
    return log_mask(keys)


def _first(chosen: Tensor, count: int) -> Tensor:
    """Return the positions ``(B, count)`` of those chosen ``(B, n)``, ascending; others where there are fewer."""
    return Selection(chosen, chosen, chosen).indices(count)


def _taken(tokens: Tensor, index: Tensor) -> Tensor:
    """Return the tokens ``(B, k, D)`` at ``index`` ``(B, k)``."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def _inverse(index: Tensor, n: int) -> Tensor:
    """Return for each of n places where it stands in ``index`` ``(B, k)``, or -1."""
    places = torch.arange(index.shape[1], device=index.device).expand_as(index)
    return index.new_full((index.shape[0], n), -1).scatter(1, index, places)


def _marked(positions: Tensor, alive: Tensor, num_patches: int) -> Tensor:
    """Mark the original patches ``(B, N)`` at the positions ``(B, n)`` of tokens alive."""
    place = torch.where(alive & (positions >= 0), positions, num_patches)
    marks = torch.zeros(positions.shape[0], num_patches + 1, dtype=torch.bool, device=positions.device)
    return marks.scatter(1, place, torch.ones_like(place, dtype=torch.bool))[:, :num_patches]
