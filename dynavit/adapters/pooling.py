"""How a weight enters pooling.

Shapes: B batch, N patch tokens, L tokens, prefix included, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.functional import pad

from dynavit.functional import log_mask, masked_mean

if TYPE_CHECKING:
    from dynavit.adapters.base import BackboneAdapter


def weighted_head(adapter: BackboneAdapter, x: Tensor, weight: Tensor, training: bool, pre_logits: bool) -> Any:
    """Pool tokens ``(B, L, D)`` by a weight ``(B, N)`` of the patches, by mean or attention, and classify them."""
    vit = adapter.backbone
    if adapter.pools_prefix:
        weight = pad(weight, (adapter.num_prefix_tokens, 0), value=1.0)
    else:
        x = x[:, adapter.num_prefix_tokens :]
    if vit.global_pool == "map":
        keys = weight[:, None, None, :]
        pooled = vit.attn_pool(x, attn_mask=log_mask(keys) if training else keys.log().to(x.dtype))
    else:
        pooled = masked_mean(x, weight)
    pooled = vit.head_drop(vit.fc_norm(pooled))
    return pooled if pre_logits else vit.head(pooled)
