"""The token sequence on its way through the blocks, in the two executions.

*mask*: every token stays in the tensor and those dropped are hidden from attention and pooling. It
is differentiable, and the number kept may differ between images. *gather*: dropped tokens are
removed, so the following blocks are cheaper.

Shapes: B batch, P prefix tokens, N original patch tokens, n patch tokens present, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dynavit.models.adapters import BackboneAdapter
from dynavit.reducers import Reducer
from dynavit.selectors import Selection
from dynavit.selectors.functional import log_mask

MaskForm = Literal["key", "identity"]


class MaskedTokens:
    """All tokens, with a mask that hides those dropped; n is N.

    Attributes:
        x: ``(B, P + n, D)``.
        positions: ``(B, n)`` original patch index of each patch token.
        alive: ``(B, n)`` bool: not removed by an earlier stage.
        mask: ``(B, n)`` fp32: the product of the stages' masks; None where nothing is masked.
        kept: ``(B, N)`` bool over the original patches: kept by every stage so far. Differs from
            ``alive`` where soft selections, which remove nothing, said no.
        expected: ``(B,)`` fp32: expected fraction of the original patches kept so far.
        probs: ``(B, n)`` fp32: probability of each token present to have been kept so far, by the last stage
            where that removes tokens, by all of them where selections are soft.
    """

    def __init__(self, x: Tensor, context: Any, adapter: BackboneAdapter, *, training: bool, form: MaskForm) -> None:
        self.x, self.context, self.adapter = x, context, adapter
        self.training, self.form = training, form
        shape = (x.shape[0], x.shape[1] - adapter.num_prefix_tokens)
        self.num_patches = shape[1]
        self.positions = torch.arange(shape[1], device=x.device).expand(shape)
        self.alive = self.kept = torch.ones(shape, dtype=torch.bool, device=x.device)
        self.mask: Tensor | None = None
        self.expected: Tensor | None = None
        self.probs: Tensor | None = None

    @property
    def patches(self) -> Tensor:
        """The patch tokens ``(B, n, D)``."""
        return self.x[:, self.adapter.num_prefix_tokens :]

    def apply(self, selection: Selection, *, soft: bool) -> None:
        """Hide what a stage did not keep; a soft selection hides in part and removes nothing."""
        self.kept = self.kept & selection.keep
        self.mask = selection.mask if self.mask is None else self.mask * selection.mask
        if soft and self.probs is not None:
            self.probs = self.probs * selection.probs
        else:  # a hard selection's probabilities are already 0 on what is dead
            self.probs = selection.probs
        if not soft:
            self.alive = self.alive & selection.keep
        self.expected = self.probs.sum(dim=1) / self.num_patches

    def attention_mask(self) -> Tensor | None:
        """Return what the next block's attention is given: None, booleans or an additive bias."""
        if self.mask is None:
            return None
        return attention_mask(self.mask, self.adapter.num_prefix_tokens, self.training, self.form)


class GatheredTokens(MaskedTokens):
    """Only the tokens still there.

    In training the kept tokens' mask has the value 1 and carries the gradient; in eval it is None.
    """

    def remove(self, selection: Selection, k: int, reducer: Reducer) -> None:
        """Remove what a stage did not keep; ``k`` tokens, or all there are, remain in every row."""
        index = selection.indices(min(k, self.positions.shape[1]))
        num_prefix = self.adapter.num_prefix_tokens
        prefix = torch.arange(num_prefix, device=index.device).expand(index.shape[0], -1)
        self.x = reducer(self.x, torch.cat([prefix, index + num_prefix], dim=1))
        self.context = self.adapter.gather(self.context, index)
        self.positions = self.positions.gather(1, index)
        self.alive = torch.ones_like(index, dtype=torch.bool)
        self.kept = torch.zeros_like(self.kept).scatter(1, self.positions, True)
        self.probs = selection.probs
        self.expected = self.probs.sum(dim=1) / self.num_patches
        if self.training:
            mask = selection.mask.gather(1, index)
            self.mask = mask if self.mask is None else self.mask.gather(1, index) * mask


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
