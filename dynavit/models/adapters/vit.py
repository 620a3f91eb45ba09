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
from dynavit.selectors.functional import log_mask

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

    @property
    def grid_size(self) -> tuple[int, int]:
        rows, columns = self.backbone.patch_embed.grid_size
        return int(rows), int(columns)

    @property
    def patch_size(self) -> tuple[int, int]:
        height, width = self.backbone.patch_embed.patch_size
        return int(height), int(width)

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

    def norm(self, x: Tensor) -> Tensor:
        return self.backbone.norm(x)

    def head(self, x: Tensor, mask: Tensor | None, training: bool, pre_logits: bool) -> Any:
        vit = self.backbone
        if mask is None or vit.global_pool in ("token", ""):
            return vit.forward_head(x, pre_logits=pre_logits)
        if vit.pool_include_prefix:
            mask = nn.functional.pad(mask, (self.num_prefix_tokens, 0), value=1.0)
        else:
            x = x[:, self.num_prefix_tokens :]
        if vit.global_pool == "map":
            keys = mask[:, None, None, :]
            pooled = vit.attn_pool(x, attn_mask=log_mask(keys) if training else additive_mask(keys > 0.5, x.dtype))
        else:
            weight = mask.unsqueeze(-1).to(x.dtype)
            pooled = (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        pooled = vit.head_drop(vit.fc_norm(pooled))
        return pooled if pre_logits else vit.head(pooled)
