"""timm's VisionTransformer: ViT, DeiT (distilled too), DeiT-3, DINOv2, CLIP and SigLIP towers."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dynavit.errors import UnsupportedBackbone
from dynavit.models.adapters.attention import AttentionView
from dynavit.models.adapters.base import BackboneAdapter, additive_mask, backend_for, register_adapter
from dynavit.models.adapters.halves import add_attention, add_mlp

_POOLS = ("token", "avg", "map", "")


@register_adapter(VisionTransformer, VisionTransformerDistilled)
class VisionTransformerAdapter(BackboneAdapter):
    """Drives pre-norm blocks. Positions are added before the first block: no context is needed."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        name = type(backbone).__name__
        for number, block in enumerate(self.backbone.blocks):
            if type(block) is not Block:
                raise UnsupportedBackbone(
                    f"{name}.blocks[{number}] is a {type(block).__name__}, which dynavit cannot "
                    f"mask; the supported block is timm.models.vision_transformer.Block (pre-norm)."
                )
        if not isinstance(self.backbone.patch_drop, nn.Identity):
            raise UnsupportedBackbone(f"{name} drops patches at random (patch_drop_rate); create it without.")
        if self.backbone.global_pool not in _POOLS or not isinstance(
            self.backbone.attn_pool, AttentionPoolLatent | None
        ):
            raise UnsupportedBackbone(
                f"{name}(global_pool={self.backbone.global_pool!r}) cannot leave out dropped tokens; "
                f"supported: {', '.join(map(repr, _POOLS))}. Pass global_pool= when creating it."
            )

    def embed(self, images: Tensor) -> tuple[Tensor, None]:
        vit = self.backbone
        return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images)))), None

    def gather(self, context: Any, index: Tensor) -> None:
        return None

    def block(self, number: int, x: Tensor, context: Any, attention_mask: Tensor | None) -> Tensor:
        block = self.backbone.blocks[number]
        if attention_mask is not None:
            attention_mask = additive_mask(attention_mask, x.dtype)

        def run(x: Tensor, attention_mask: Tensor | None) -> Tensor:
            with backend_for(x, attention_mask):  # inside, so that a recomputation has it too
                return block(x) if attention_mask is None else block(x, attn_mask=attention_mask)

        return self._recomputed(run, x, attention_mask)

    def attention(self, number: int, x: Tensor, context: Any, attention_mask: Tensor | None) -> Tensor:
        block = self.backbone.blocks[number]
        if attention_mask is not None:
            attention_mask = additive_mask(attention_mask, x.dtype)

        def run(x: Tensor, attention_mask: Tensor | None) -> Tensor:
            with backend_for(x, attention_mask):
                attended = block.attn(block.norm1(x), attn_mask=attention_mask)
            return add_attention(block, x, attended)

        return self._recomputed(run, x, attention_mask)

    def mlp(self, number: int, x: Tensor) -> Tensor:
        return self._recomputed(partial(add_mlp, self.backbone.blocks[number]), x)

    def view(self, number: int, x: Tensor, context: Any, attention_mask: Tensor | None) -> AttentionView:
        block = self.backbone.blocks[number]
        return AttentionView(
            block.attn,
            block.norm1,
            x,
            num_prefix_tokens=self.num_prefix_tokens,
            has_class_token=self.has_class_token,
            mask=attention_mask,
        )

    def extend(self, context: Any, count: int) -> None:
        return None

    @property
    def pools_prefix(self) -> bool:
        return bool(self.backbone.pool_include_prefix)
