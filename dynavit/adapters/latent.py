"""What the latent query of an attention-pooling head looks at.

Shapes: B batch, L tokens (prefix included), D width, H heads of the pooling, d head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional as F

from dynavit.errors import UnsupportedBackbone
from dynavit.functional import full_precision

if TYPE_CHECKING:
    from dynavit.adapters.base import BackboneAdapter


def latent_scores(adapter: BackboneAdapter, x: Tensor) -> Tensor:
    """Return products ``(B, H, 1, L)`` of the latent's query with tokens, as if they were pooled now, up to a constant.

    The query is the same for all images, and nothing lies between the projection of the keys and their product with it:
    one row for each head, made once, takes the place of all keys.

    Args:
        adapter: of the backbone.
        x: ``(B, L, D)``, before the backbone's last norm.

    Raises:
        UnsupportedBackbone: as :func:`check_latent`.
    """
    check_latent(adapter.backbone)
    pool, tokens = adapter.backbone.attn_pool, full_precision(adapter.norm(x))
    with torch.autocast(tokens.device.type, enabled=False):
        query = F.linear(*(full_precision(part) for part in (pool.latent[0], pool.q.weight, pool.q.bias)))
        query = query.view(pool.num_heads, 1, -1) * pool.scale
        key_weight = full_precision(pool.kv.weight).chunk(2)[0].unflatten(0, (pool.num_heads, -1))
        direction = (query @ key_weight).squeeze(1)  # (H, D)
        scores = F.linear(tokens, direction).transpose(1, 2).unsqueeze(2)
    if adapter.pools_prefix:
        return scores
    return F.pad(scores[..., adapter.num_prefix_tokens :], (adapter.num_prefix_tokens, 0), value=-torch.inf)


def check_latent(backbone: Any) -> None:
    """Refuse a backbone that has no latent query whose attention could be read.

    Raises:
        UnsupportedBackbone: it pools in another way, or by a latent of another kind.
    """
    pool = getattr(backbone, "attn_pool", None)
    if backbone.global_pool != "map" or type(pool) is not AttentionPoolLatent:
        raise UnsupportedBackbone(
            f"{type(backbone).__name__}(global_pool={backbone.global_pool!r}) has no pooling head with a latent query "
            f"(global_pool='map'), whose attention could be read; use 'class_attention', 'mean_attention' or a learned "
            f"scorer."
        )
    plain = all(type(layer) is nn.Linear and layer.bias is not None for layer in (pool.q, pool.kv))
    if not plain or pool.latent_len != 1 or pool.pos_embed is not None or not isinstance(pool.k_norm, nn.Identity):
        raise UnsupportedBackbone(
            f"{type(backbone).__name__}.attn_pool cannot be read: supported is one latent with projections that are "
            f"plain torch.nn.Linear with bias, without QK-norm and positions, as timm's models have it."
        )
