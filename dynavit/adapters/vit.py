"""timm's VisionTransformer: ViT, DeiT (distilled too), DeiT-3, DINOv2, CLIP and SigLIP towers."""

from __future__ import annotations

from typing import Any

from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from dynavit.adapters.images import check_images
from dynavit.adapters.prenorm import PreNormAdapter
from dynavit.adapters.registry import register_adapter


@register_adapter(VisionTransformer, VisionTransformerDistilled)
class VisionTransformerAdapter(PreNormAdapter):
    """Drives blocks of ViT. Positions are added before the first of them: no context is needed."""

    blocks = (Block,)

    def embed(self, images: Tensor) -> tuple[Tensor, None]:
        check_images(images, self)
        vit = self.backbone
        return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images)))), None

    def gather(self, context: Any, index: Tensor) -> None:
        return None

    def extend(self, context: Any, count: int) -> None:
        return None

    @property
    def pools_prefix(self) -> bool:
        return bool(self.backbone.pool_include_prefix)
