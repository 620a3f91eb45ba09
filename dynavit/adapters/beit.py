"""timm's Beit: BEiT and BEiT v2, whose attention adds a bias by the relative position of two patches.

Bao et al. 2021, https://arxiv.org/abs/2106.08254, and Peng et al. 2022, https://arxiv.org/abs/2208.06366.

Shapes: B batch, H heads, N patches, L = 1 + N, l = 1 + n tokens present.
"""

from __future__ import annotations

from typing import cast

import torch
from timm.models.beit import Beit, Block
from torch import Tensor, nn
from torch.func import functional_call

from dynavit.adapters.attention import relative_bias
from dynavit.adapters.images import check_images
from dynavit.adapters.prenorm import PreNormAdapter
from dynavit.adapters.registry import register_adapter
from dynavit.adapters.sdpa import backend_for
from dynavit.errors import UnsupportedBackbone
from dynavit.functional import take


@register_adapter(Beit)
class BeitAdapter(PreNormAdapter):
    """Drives blocks that add to attention ``table[distance(i, j)]``, a row of H numbers.

    The context is the matrix of those distances, the row of the table that each pair of tokens takes: ``(L, L)``
    while all tokens are there, then ``(B, l, l)``. None where the model has absolute positions only. Tokens that a
    reducer made stand at no place, as the class token does, and take its rows and columns.
    """

    blocks = (Block,)

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        if self.backbone.rel_pos_bias is not None:
            raise UnsupportedBackbone(
                f"{type(backbone).__name__}.rel_pos_bias is one table for all blocks (use_shared_rel_pos_bias=True), "
                f"which dynavit does not drive; use_rel_pos_bias=True gives every block its own."
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

    def _call(self, module: nn.Module, number: int, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        bias, attn = self._mask(context, mask, x.dtype), self.backbone.blocks[number].attn
        if context is None or (context.ndim == 2 and len(context) == len(attn.relative_position_index)):
            with backend_for(x, bias):  # all tokens are there and no other: attention adds its own table
                return module(x, shared_rel_pos_bias=bias)
        # after that it is run as one without a table
        table = relative_bias(context, attn.relative_position_bias_table)
        bias = table if bias is None else table + bias
        prefix = "" if module is attn else "attn."
        absent = cast("dict[str, Tensor]", {f"{prefix}relative_position_bias_table": None})
        with backend_for(x, bias):
            return functional_call(module, absent, (x,), {"shared_rel_pos_bias": bias})

    def _options(self, number: int, context: Tensor | None) -> dict[str, Tensor]:
        return {} if context is None else {"distances": context}
