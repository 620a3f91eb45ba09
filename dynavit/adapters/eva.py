"""timm's Eva: EVA, EVA-02, DINOv3, RoPE-ViT, Perception Encoder; rotary positions of every kind.

Rotary embeddings (RoPE): Su et al. 2021, https://arxiv.org/abs/2104.09864; axial and mixed ones in images: Heo et al.
2024, https://arxiv.org/abs/2403.13298. Inside attention they turn queries and keys by the place of each patch, so
every patch that is kept must keep its own.

A token that a reducer made stands at no place: it takes the identity, as prefix tokens do, which are not turned.

Shapes: B batch, H heads, N original patches and whatever was made, n of them present, d width of the rotary embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from timm.models.eva import Eva, EvaBlock
from torch import Tensor

from dynavit.adapters.images import check_images
from dynavit.adapters.prenorm import PreNormAdapter
from dynavit.adapters.registry import register_adapter
from dynavit.adapters.rotary import without_rotation


@dataclass(frozen=True)
class RotaryContext:
    """Where the patches are.

    Attributes:
        rope: axial, the same in every block: ``(N, d)``, and ``(B, 1, n, d)`` once patches were dropped.
            Mixed, learned by each head of each block: ``(depth, H, N, d)`` always, for a copy of all blocks'
            embeddings for every image would be large. None without rotary embeddings.
        positions: ``(B, n)`` row of the mixed ``rope`` that each patch takes; None while all are there in order, and
            where nothing has to be looked up.
    """

    rope: Tensor | None
    positions: Tensor | None = None


@register_adapter(Eva)
class EvaAdapter(PreNormAdapter):
    """Drives blocks that are given the rotary embedding of the patches still there."""

    blocks = (EvaBlock,)

    def embed(self, images: Tensor) -> tuple[Tensor, RotaryContext]:
        check_images(images, self)
        eva = self.backbone
        # once a forward: while training, timm may move the rotary coordinates at random
        x, rope = eva._pos_embed(eva.patch_embed(images))
        return eva.norm_pre(x), RotaryContext(rope)

    def gather(self, context: RotaryContext, index: Tensor) -> RotaryContext:
        rope = context.rope
        if rope is None:
            return context
        if self.backbone.rope_mixed:
            positions = index if context.positions is None else context.positions.gather(1, index)
            return replace(context, positions=positions)
        if rope.ndim == 2:
            return RotaryContext(rope[index].unsqueeze(1))
        return RotaryContext(rope.gather(2, index[:, None, :, None].expand(-1, -1, -1, rope.shape[-1])))

    def extend(self, context: RotaryContext, count: int) -> RotaryContext:
        rope, positions = context.rope, context.positions
        if rope is None:
            return context
        if positions is not None:
            rows = torch.arange(rope.shape[-2], rope.shape[-2] + count, device=rope.device)
            positions = torch.cat([positions, rows.expand(positions.shape[0], -1)], dim=1)
        return RotaryContext(without_rotation(rope, count), positions)

    def _options(self, number: int, context: RotaryContext) -> dict[str, Tensor]:
        """Return the rotary embedding, broadcast against queries ``(B, H, n, d)``."""
        rope = context.rope
        if rope is None:
            return {}
        if self.backbone.rope_mixed:
            rope = rope[number]
            rope = rope if context.positions is None else rope[:, context.positions].transpose(0, 1)
        return {"rope": rope}

    @property
    def pools_prefix(self) -> bool:
        return bool(self.backbone.global_pool == "map")
