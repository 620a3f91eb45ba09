"""What timm's families of pre-norm blocks share: blocks, their halves, and the parts that are refused.

A block is ``x + attention(norm1(x))``, then ``x + mlp(norm2(x))``, and its attention takes ``attn_mask``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from dynavit.adapters.attention import AttentionView
from dynavit.adapters.base import BackboneAdapter
from dynavit.adapters.half_blocks import add_attention
from dynavit.adapters.latent import latent_scores
from dynavit.adapters.sdpa import additive_mask, backend_for
from dynavit.errors import UnsupportedBackbone

_POOLS = ("token", "avg", "map", "")


class PreNormAdapter(BackboneAdapter):
    """Drives pre-norm blocks; a family says what else its blocks take, and what its patches carry along.

    Attributes:
        blocks: supported classes of block.
    """

    blocks: ClassVar[tuple[type[nn.Module], ...]]

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        name = type(backbone).__name__
        for number, block in enumerate(self.backbone.blocks):
            if type(block) not in self.blocks:
                supported = " or ".join(f"{cls.__module__}.{cls.__name__}" for cls in self.blocks)
                raise UnsupportedBackbone(
                    f"{name}.blocks[{number}] is a {type(block).__name__}, which dynavit does not drive; the supported "
                    f"block is {supported} (pre-norm)."
                )
        if not isinstance(getattr(self.backbone, "patch_drop", None), nn.Identity | None):
            raise UnsupportedBackbone(f"{name} drops patches at random (patch_drop_rate); create it without.")
        pool = self.backbone.global_pool
        if pool not in _POOLS or not isinstance(getattr(self.backbone, "attn_pool", None), AttentionPoolLatent | None):
            raise UnsupportedBackbone(
                f"{name}(global_pool={pool!r}) cannot leave out dropped tokens; supported: "
                f"{', '.join(map(repr, _POOLS))}. Pass global_pool= when creating it."
            )

    def block(self, number: int, x: Tensor, context: Any, attention_mask: Tensor | None) -> Tensor:
        block = self.backbone.blocks[number]

        def run(x: Tensor, mask: Tensor | None) -> Tensor:
            return self._call(block, number, x, context, mask)

        return self._recomputed(run, x, attention_mask)

    def attention(self, number: int, x: Tensor, context: Any, attention_mask: Tensor | None) -> Tensor:
        block = self.backbone.blocks[number]

        def run(x: Tensor, mask: Tensor | None) -> Tensor:
            return add_attention(block, x, self._call(block.attn, number, block.norm1(x), context, mask))

        return self._recomputed(run, x, attention_mask)

    def view(self, number: int, x: Tensor, context: Any, attention_mask: Tensor | None) -> AttentionView:
        block = self.backbone.blocks[number]
        return AttentionView(
            block.attn,
            block.norm1,
            x,
            num_prefix_tokens=self.num_prefix_tokens,
            has_class_token=self.has_class_token,
            mask=self._mask(context, attention_mask, x.dtype),
            latent_scores=partial(latent_scores, self),
            **self._options(number, context),
        )

    def _call(self, module: nn.Module, number: int, x: Tensor, context: Any, mask: Tensor | None) -> Tensor:
        """Run block ``number`` or its attention on its input; in backward once more, where blocks are recomputed."""
        mask = self._mask(context, mask, x.dtype)
        with backend_for(x, mask):
            return module(x, attn_mask=mask, **self._options(number, context))

    def _options(self, number: int, context: Any) -> dict[str, Tensor]:
        """Return what block ``number`` and its attention are told of places, beside the mask."""
        return {}

    def _mask(self, context: Any, attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Return the mask as a bias."""
        return None if attention_mask is None else additive_mask(attention_mask, dtype)
