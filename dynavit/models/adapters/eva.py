"""timm's Eva: EVA, EVA-02, DINOv3, RoPE-ViT, Perception Encoder; rotary positions of every kind.

Rotary embeddings (RoPE): Su et al. 2021, https://arxiv.org/abs/2104.09864; axial and mixed ones in images: Heo et al.
2024, https://arxiv.org/abs/2403.13298. Inside attention they turn queries and keys by the place of each patch, so
every patch that is kept must keep its own.

A token that a reducer made stands at no place: it takes the identity, as prefix tokens do, which are not turned.

Shapes: B batch, H heads, N original patches and whatever was made, n of them present, d width of the rotary embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.eva import Eva, EvaBlock
from torch import Tensor, nn

from dynavit.errors import UnsupportedBackbone
from dynavit.models.adapters.attention import AttentionView
from dynavit.models.adapters.base import BackboneAdapter, additive_mask, backend_for, register_adapter
from dynavit.models.adapters.halves import add_attention, add_mlp
from dynavit.models.adapters.rotary import without_rotation

_POOLS = ("token", "avg", "map", "")


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
class EvaAdapter(BackboneAdapter):
    """Drives pre-norm blocks, which are given the rotary embedding of the patches still there."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        name = type(backbone).__name__
        for number, block in enumerate(self.backbone.blocks):
            if type(block) is not EvaBlock:
                raise UnsupportedBackbone(
                    f"{name}.blocks[{number}] is a {type(block).__name__}, which dynavit does not drive; the "
                    f"supported block is timm.models.eva.EvaBlock (pre-norm: use_post_norm=False)."
                )
        if self.backbone.patch_drop is not None:
            raise UnsupportedBackbone(f"{name} drops patches at random (patch_drop_rate); create it without.")
        if self.backbone.global_pool not in _POOLS or not isinstance(
            self.backbone.attn_pool, AttentionPoolLatent | None
        ):
            raise UnsupportedBackbone(
                f"{name}(global_pool={self.backbone.global_pool!r}) cannot leave out dropped tokens; "
                f"supported: {', '.join(map(repr, _POOLS))}. Pass global_pool= when creating it."
            )

    def embed(self, images: Tensor) -> tuple[Tensor, RotaryContext]:
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

    def block(self, number: int, x: Tensor, context: RotaryContext, attention_mask: Tensor | None) -> Tensor:
        block = self.backbone.blocks[number]
        rope = self._rope(number, context)
        if attention_mask is not None:
            attention_mask = additive_mask(attention_mask, x.dtype)

        def run(x: Tensor, attention_mask: Tensor | None) -> Tensor:
            with backend_for(x, attention_mask):  # inside, so that a recomputation has it too
                return block(x, rope=rope, attn_mask=attention_mask)

        return self._recomputed(run, x, attention_mask)

    def attention(self, number: int, x: Tensor, context: RotaryContext, attention_mask: Tensor | None) -> Tensor:
        block = self.backbone.blocks[number]
        rope = self._rope(number, context)
        if attention_mask is not None:
            attention_mask = additive_mask(attention_mask, x.dtype)

        def run(x: Tensor, attention_mask: Tensor | None) -> Tensor:
            with backend_for(x, attention_mask):
                attended = block.attn(block.norm1(x), rope=rope, attn_mask=attention_mask)
            return add_attention(block, x, attended)

        return self._recomputed(run, x, attention_mask)

    def mlp(self, number: int, x: Tensor) -> Tensor:
        return self._recomputed(partial(add_mlp, self.backbone.blocks[number]), x)

    def view(self, number: int, x: Tensor, context: RotaryContext, attention_mask: Tensor | None) -> AttentionView:
        block = self.backbone.blocks[number]
        return AttentionView(
            block.attn,
            block.norm1,
            x,
            num_prefix_tokens=self.num_prefix_tokens,
            has_class_token=self.has_class_token,
            mask=attention_mask,
            rope=self._rope(number, context),
        )

    def _rope(self, number: int, context: RotaryContext) -> Tensor | None:
        """Return what block ``number`` takes, broadcast against queries ``(B, H, n, d)``."""
        if context.rope is None or not self.backbone.rope_mixed:
            return context.rope
        rope = context.rope[number]
        return rope if context.positions is None else rope[:, context.positions].transpose(0, 1)

    @property
    def pools_prefix(self) -> bool:
        return bool(self.backbone.global_pool == "map")
