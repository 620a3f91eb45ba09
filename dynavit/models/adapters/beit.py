"""timm's Beit: BEiT and BEiT v2, whose attention adds a bias by the relative position of two patches.

Bao et al. 2021, https://arxiv.org/abs/2106.08254, and Peng et al. 2022, https://arxiv.org/abs/2208.06366.

Shapes: B batch, H heads, N patches, L = 1 + N, l = 1 + n tokens present.
"""

from __future__ import annotations

from typing import cast

import torch
from timm.models import checkpoint
from timm.models.beit import Beit, Block
from torch import Tensor, nn
from torch.func import functional_call

from dynavit.errors import UnsupportedBackbone
from dynavit.models.adapters.base import BackboneAdapter, additive_mask, backend_for, register_adapter

_TABLE = "relative_position_bias_table"


@register_adapter(Beit)
class BeitAdapter(BackboneAdapter):
    """Drives blocks that add to attention ``table[distance(i, j)]``, a row of H numbers.

    The context is the matrix of those distances, the row of the table that each pair of tokens takes: ``(L, L)``
    while all tokens are there, then ``(B, l, l)``. None where the model has absolute positions only.
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
        rows = context.gather(1, kept[:, :, None].expand(-1, -1, context.shape[2]))
        return rows.gather(2, kept[:, None, :].expand(-1, kept.shape[1], -1))

    def block(self, number: int, x: Tensor, context: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        block = self.backbone.blocks[number]

        def run(x: Tensor, attention_mask: Tensor | None) -> Tensor:
            bias = None if attention_mask is None else additive_mask(attention_mask, x.dtype)
            if context is None or context.ndim == 2:  # all tokens are there, and the block adds its own table
                with backend_for(x, bias):  # inside, so that a recomputation has it too
                    return block(x, shared_rel_pos_bias=bias)
            table = nn.functional.embedding(context, getattr(block.attn, _TABLE)).permute(0, 3, 1, 2).contiguous()
            bias = table if bias is None else table + bias
            # the block's own table is of all pairs of tokens: run it as one without
            absent = cast("dict[str, Tensor]", {f"attn.{_TABLE}": None})
            with backend_for(x, bias):
                return functional_call(block, absent, (x,), {"shared_rel_pos_bias": bias})

        if self.backbone.grad_checkpointing and self.backbone.training:
            return checkpoint(run, x, attention_mask)
        return run(x, attention_mask)
