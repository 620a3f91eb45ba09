"""The token sequence on its way through the blocks, in the two executions.

*mask*: every token stays in the tensor and those dropped are hidden from attention and pooling. It
is differentiable, and the number kept may differ between images. *gather*: dropped tokens are
removed, so the following blocks are cheaper. Where counts differ between images the shorter ones are
padded, and the padding is hidden as dropped tokens are in the first execution.

Shapes: B batch, P prefix tokens, N original patches, n tokens present beside the prefix, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from dynavit.adapters import BackboneAdapter
from dynavit.adapters.attention import AttentionView
from dynavit.functional import full_precision, masked_mean
from dynavit.models.attention_bias import MaskForm, attention_mask, proportional_bias
from dynavit.models.places import Places
from dynavit.models.training_probes import Probes
from dynavit.reducers import Reducer
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
        execution: which of the two.
        x: ``(B, P + n, D)``.
        num_patches: N; ``(B,)`` int64 where images differ.
        positions: ``(B, n)`` original patch index of each token, of a merged one that of one of its patches; -1 for a
            token that a reducer appended or mixed, which stands at no place.
        alive: ``(B, n)`` bool: neither removed by an earlier stage nor padding; None: all are.
        mask: ``(B, n)`` fp32: the product of the stages' masks; None where nothing is masked.
        size: ``(B, n)`` fp32: how many patches each token stands for, with the gradient of the masks in it, and 0 for
            one that is dead; None while nothing was merged.
        probs: ``(B, n)`` fp32: product of the probabilities of soft selections so far; None before the first.
        places: follows the original patches; None unless somebody wants to know.
    """

    execution: ClassVar[Literal["mask", "gather"]]

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
        self.set_mask(None if valid is None else valid.float())

    @property
    def patches(self) -> Tensor:
        """The tokens beside the prefix, ``(B, n, D)``."""
        return self.x[:, self.adapter.num_prefix_tokens :]

    @property
    def summary(self) -> Tensor:
        """The class token, ``(B, D)``; in a model without one the mean of the patches by their weight."""
        if self.adapter.has_class_token:
            return self.x[:, 0]
        return self.patches.mean(dim=1) if self.weight is None else masked_mean(self.patches, self.weight)

    @property
    def candidates(self) -> Tensor:
        """Which tokens are alive, ``(B, n)`` bool."""
        return torch.ones_like(self.positions, dtype=torch.bool) if self.alive is None else self.alive

    @property
    def weight(self) -> Tensor | None:
        """How much each token counts in pooling, ``(B, n)``; None: all alike."""
        return self.mask if self.size is None else self.size

    @property
    def sizes(self) -> Tensor:
        """How many patches each token stands for, ``(B, n)`` fp32 (fp64 of an fp64 model)."""
        if self.size is not None:
            return self.size
        return full_precision(self.patches.new_ones(self.positions.shape) if self.mask is None else self.mask)

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
    def select(
        self,
        selection: Selection,
        logits: Tensor,
        reducer: Reducer,
        k: int | None,
        soft: bool,
        probes: Probes | None = None,
    ) -> None:
        """Carry out what a stage decided.

        Args:
            selection: the decision over the tokens present.
            logits: ``(B, n)``, the scores behind it.
            reducer: what becomes of the others.
            k: tokens that it keeps in every row, for gather execution; None where counts differ.
            soft: it hides in part and removes nothing.
            probes: what carries the gradient of dropped tokens' masks, for gather execution; None: masks carry none.
        """

    def set_mask(self, mask: Tensor | None, size: Tensor | None = None) -> None:
        """Hide tokens from now on by a mask ``(B, n)``; None: hide none.

        Args:
            mask: of all tokens.
            size: ``(B, n)``, how many patches each counts as in attention, 0 for hidden ones; None: as one.
        """
        self.mask = mask
        num_prefix = self.adapter.num_prefix_tokens
        if size is not None and (mask is None or not self.training):
            self._bias = proportional_bias(size, num_prefix, self.x.dtype)
        elif mask is not None:
            self._bias = attention_mask(mask, num_prefix, self.training, self.form, size)
        else:
            self._bias = None

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
        self.set_mask(torch.cat([mask, exists.to(mask.dtype)], dim=1))
