"""timm's Beit: BEiT and BEiT v2, whose attention adds a bias by the relative position of two patches.

Bao et al. 2021, https://arxiv.org/abs/2106.08254, and Peng et al. 2022, https://arxiv.org/abs/2208.06366.

Shapes: B batch, H heads, N patches, L = 1 + N, l = 1 + n tokens present.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.models.beit import Beit, Block
from torch import Tensor, nn
from torch.func import functional_call

from dynavit.adapters.attention import AttentionView, relative_bias
from dynavit.adapters.base import BackboneAdapter
from dynavit.adapters.halves import add_attention
from dynavit.adapters.images import check_images
from dynavit.adapters.registry import register_adapter
from dynavit.adapters.sdpa import additive_mask, backend_for
from dynavit.errors import UnsupportedBackbone
from dynavit.functional import take

_TABLE = "relative_position_bias_table"


@register_adapter(Beit)
class BeitAdapter(BackboneAdapter):
    """Drives blocks that add to attention ``table[distance(i, j)]``, a row of H numbers.

    The context is the matrix of those distances, the row of the table that each pair of tokens takes: ``(L, L)``
    while all tokens are there, then ``(B, l, l)``. None where the model has absolute positions only. Tokens that a
    reducer made stand at no place, as the class token does, and take its rows and columns.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        name = type(backbone).__name__
        for number, block in enumerate(self.backbone.blocks):
            if type(block) is not Block:
                raise UnsupportedBackbone(
                    f"{name}.blocks[{number}] is a {type(block).__name__}, which dynavit does not drive; the "
                    f"supported block is timm.models.beit.Block."
                )
        if self.backbone.rel_pos_bias is not None:
            raise UnsupportedBackbone(
                f"{name}.rel_pos_bias is one table for all blocks (use_shared_rel_pos_bias=True), which dynavit "
                f"does not drive; use_rel_pos_bias=True gives every block its own."
            )

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        check_images(images, self)
        beit = self.backbone
        x = beit.patch_embed(images)
        x = torch.cat((beit.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if beit.pos_embed is not None:
            x = x + beit.pos_embed
        return beit.pos_drop(x), beit.blocks[0].attn.relative_position_index

    def gather(self, context: Tensor | None, index: Tensor) -> Tensor | None:
        if context is None:
            return None
        kept = nn.functional.pad(index + 1, (1, 0))  # the class token stays first
        if context.ndim == 2:
            return context[kept[:, :, None], kept[:, None, :]]
        rows = take(context, kept)
        return rows.gather(2, kept[:, None, :].expand(-1, kept.shape[1], -1))

    def extend(self, context: Tensor | None, count: int) -> Tensor | None:
        if context is None:
            return None
        taken = torch.arange(context.shape[-1], device=context.device)
        taken = nn.functional.pad(taken, (0, count))  # 0, the class token, for each that was made
        return context.index_select(-2, taken).index_select(-1, taken)

    def block(self, number: int, x: Tensor, context: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        block = self.backbone.blocks[number]

        def run(x: Tensor, attention_mask: Tensor | None) -> Tensor:
            absent, bias = _biases(block.attn, "attn.", x, context, attention_mask)
            with backend_for(x, bias):  # inside, so that a recomputation has it too
                return _call(block, absent, x, bias)

        return self._recomputed(run, x, attention_mask)

    def attention(self, number: int, x: Tensor, context: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        block = self.backbone.blocks[number]

        def run(x: Tensor, attention_mask: Tensor | None) -> Tensor:
            absent, bias = _biases(block.attn, "", x, context, attention_mask)
            with backend_for(x, bias):
                attended = _call(block.attn, absent, block.norm1(x), bias)
            return add_attention(block, x, attended)

        return self._recomputed(run, x, attention_mask)

    def view(self, number: int, x: Tensor, context: Tensor | None, attention_mask: Tensor | None) -> AttentionView:
        block = self.backbone.blocks[number]
        return AttentionView(
            block.attn,
            block.norm1,
            x,
            num_prefix_tokens=self.num_prefix_tokens,
            has_class_token=self.has_class_token,
            mask=attention_mask,
            distances=context,
        )


def _biases(
    attn: Any, prefix: str, x: Tensor, context: Tensor | None, attention_mask: Tensor | None
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the parameters that attention is to run without, and the bias to give it.

    While all tokens are there and no other, attention adds its own table, which is of all pairs of them. After that
    it is run as one without a table.
    """
    bias = None if attention_mask is None else additive_mask(attention_mask, x.dtype)
    if context is None or (context.ndim == 2 and len(context) == len(attn.relative_position_index)):
        return {}, bias
    table = relative_bias(context, getattr(attn, _TABLE))
    absent = cast("dict[str, Tensor]", {f"{prefix}{_TABLE}": None})
    return absent, table if bias is None else table + bias


def _call(module: nn.Module, absent: dict[str, Tensor], x: Tensor, bias: Tensor | None) -> Tensor:
    if not absent:
        return module(x, shared_rel_pos_bias=bias)
    return functional_call(module, absent, (x,), {"shared_rel_pos_bias": bias})
