"""timm's VisionTransformer: ViT, DeiT (distilled too), DeiT-3, DINOv2, CLIP and SigLIP towers."""

from __future__ import annotations

from typing import Any

from timm.layers.attention_pool import AttentionPoolLatent
from timm.models import checkpoint
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dynavit.errors import UnsupportedBackbone
from dynavit.models.adapters.base import BackboneAdapter, additive_mask, backend_for, register_adapter

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

        if self.backbone.grad_checkpointing and self.backbone.training:
            return checkpoint(run, x, attention_mask)
        return run(x, attention_mask)

    @property
    def pools_prefix(self) -> bool:
        return bool(self.backbone.pool_include_prefix)
