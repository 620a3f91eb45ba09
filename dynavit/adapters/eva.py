"""timm's Eva: EVA, EVA-02, DINOv3, RoPE-ViT, Perception Encoder; rotary positions of every kind.

Rotary embeddings (RoPE): Su et al. 2021, https://arxiv.org/abs/2104.09864; axial and mixed ones in images: Heo et al.
2024, https://arxiv.org/abs/2403.13298. Inside attention they turn queries and keys by the place of each patch, so
every patch that is kept must keep its own.

A token that a reducer made stands at no place: it takes the identity, as prefix tokens do, which are not turned.

"""

from __future__ import annotations

from timm.models.eva import Eva, EvaBlock
from torch import Tensor

from dynavit.adapters.images import check_images
from dynavit.adapters.prenorm import PreNormAdapter
from dynavit.adapters.registry import register_adapter
from dynavit.adapters.rotary import MixedRotary, Rotary, extend_rotary, gather_rotary, rotary_of


@register_adapter(Eva)
class EvaAdapter(PreNormAdapter):
    """Drives blocks that are given the rotary embedding of the patches still there."""

    blocks = (EvaBlock,)

    def embed(self, images: Tensor) -> tuple[Tensor, Rotary]:
        check_images(images, self)
        eva = self.backbone
        # once a forward: while training, timm may move the rotary coordinates at random
        x, rope = eva._pos_embed(eva.patch_embed(images))
        return eva.norm_pre(x), MixedRotary.shared(rope) if rope is not None and eva.rope_mixed else rope

    def gather(self, context: Rotary, index: Tensor) -> Rotary:
        return gather_rotary(context, index)

    def extend(self, context: Rotary, count: int) -> Rotary:
        return extend_rotary(context, count)

    def _options(self, number: int, context: Rotary) -> dict[str, Tensor]:
        return rotary_of(context, number)

    @property
    def pools_prefix(self) -> bool:
        return bool(self.backbone.global_pool == "map")
