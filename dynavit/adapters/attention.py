"""What a block's attention says of the tokens, worked out from the block's own weights beside its forward.

Fused kernels return no attention weights, so a scorer that reads them has to compute them again: of the class token
alone that is cheap, of all tokens it is as expensive as the attention itself.

Shapes: B batch, P prefix tokens, L tokens (prefix included), D width, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from timm.layers.attention import AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from dynavit.adapters.sdpa import additive_mask
from dynavit.errors import UnsupportedBackbone
from dynavit.functional import full_precision, masked_mean

_KNOWN = (Attention, AttentionRope, EvaAttention, BeitAttention)
_ALL = slice(None)
_CLASS = slice(0, 1)

Part = Literal["q", "k", "v"]


class AttentionView:
    """The attention of one block at its input ``x`` ``(B, L, D)``. Nothing is computed before it is asked for.

    Attention weights are fp32 (fp64 of an fp64 model) whatever the block runs in; without dropout.

    Args:
        attn: the block's attention: timm's Attention, AttentionRope, EvaAttention or Beit's Attention.
        norm: what the block applies before it.
        x: tokens as they enter the block.
        num_prefix_tokens: P.
        has_class_token: token 0 is a class token.
        rope: rotary embedding of the patches, as the attention takes it.
        mask: booleans or a bias, broadcast against ``(B, H, L, L)``, as the block takes it.
        distances: row of BEiT's table of biases that each pair of tokens takes, ``(L, L)`` or ``(B, L, L)``.
        latent_scores: gives the products ``(B, H, 1, L)`` of a pooling head's latent with ``x``, as
            :func:`~dynavit.adapters.latent.latent_scores` does.

    Raises:
        UnsupportedBackbone: an attention module that is not known here; the message names it.
    """

    def __init__(
        self,
        attn: nn.Module,
        norm: nn.Module,
        x: Tensor,
        *,
        num_prefix_tokens: int,
        has_class_token: bool,
        rope: Tensor | None = None,
        mask: Tensor | None = None,
        distances: Tensor | None = None,
        latent_scores: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_attention(attn)
        self.attn: Any = attn
        self.norm, self.x = norm, x
        self.num_prefix_tokens = num_prefix_tokens
        self.has_class_token = has_class_token
        self.rope, self.mask, self.distances = rope, mask, distances
        self.latent_scores = latent_scores
        self._cache: dict[str, Tensor] = {}

    @property
    def folds(self) -> bool:
        """Whether the class token's attention needs no keys: there is neither QK-norm nor rotation."""
        return self.rope is None and not normalises_keys(self.attn)

    def class_attention(self) -> Tensor:
        """Return the attention of the class token to every token: ``(B, H, L)``, rows sum to 1.

        Where nothing lies between projection and product, ``q (W_k x) = (W_k' q) x``: one row for each head instead
        of all keys. The bias of the keys adds the same to every score and drops out.

        Raises:
            UnsupportedBackbone: the model has no class token.
        """
        if not self.has_class_token:
            raise UnsupportedBackbone(
                "this backbone has no class token whose attention could be read; use a scorer that needs none, "
                "such as 'mean_attention' or 'mlp'."
            )
        if "attention" in self._cache:
            return self._cache["attention"][:, :, 0]
        if "class_attention" not in self._cache:
            scores = self._folded_scores(self._tokens()[:, 0]) if self.folds else self._scores(_CLASS)
            self._cache["class_attention"] = self._softmax(scores, _CLASS)[:, :, 0]
        return self._cache["class_attention"]

    def mean_attention(self, weight: Tensor | None = None) -> Tensor:
        """Return the attention of the mean of the patches to every token: ``(B, H, L)``, rows sum to 1.

        The mean is taken after the block's norm, is not among the tokens, and stands at no place.

        Args:
            weight: ``(B, n)``, how much each patch counts in the mean; None: all alike.
        """
        patches = full_precision(self._tokens()[:, self.num_prefix_tokens :])
        mean = patches.mean(dim=1) if weight is None else masked_mean(patches, weight)
        mean = mean.to(self._tokens().dtype)
        scores = self._folded_scores(mean) if self.folds else self._products(self._queries(mean.unsqueeze(1)))
        return self._softmax(scores, None)[:, :, 0]

    def latent_attention(self) -> Tensor:
        """Return the attention of the pooling head's latent to every token, as if they were pooled now.

        Returns:
            ``(B, H, L)``, H of the pooling head; rows sum to 1, prefix tokens that are not pooled have 0.

        Raises:
            UnsupportedBackbone: the head pools in another way.
        """
        assert self.latent_scores is not None
        return self._hidden(self.latent_scores(self.x)).softmax(dim=-1)[:, :, 0]

    def attention(self) -> Tensor:
        """Return every token's attention to every token: ``(B, H, L, L)``, rows sum to 1."""
        if "attention" not in self._cache:
            self._cache["attention"] = self._softmax(self._scores(_ALL), _ALL)
        return self._cache["attention"]

    def keys(self) -> Tensor:
        """Return the keys ``(B, H, L, d)``: after QK-norm, before any rotation."""
        if "keys" not in self._cache:
            keys = self._heads("k", self._tokens())
            self._cache["keys"] = self.attn.k_norm(keys) if normalises_keys(self.attn) else keys
        return self._cache["keys"]

    def mean_keys(self) -> Tensor:
        """Return the mean of the keys over the heads, ``(B, L, d)``; without QK-norm one narrow product."""
        if "keys" in self._cache or normalises_keys(self.attn):
            return self.keys().mean(dim=1)
        weight, bias = _projection(self.attn, "k")
        heads = self._num_heads("k")
        weight = weight.unflatten(0, (heads, -1)).mean(dim=0)
        return F.linear(self._tokens(), weight, None if bias is None else bias.unflatten(0, (heads, -1)).mean(dim=0))

    def values(self) -> Tensor:
        """Return the values ``(B, H, L, d)``."""
        if "values" not in self._cache:
            self._cache["values"] = self._heads("v", self._tokens())
        return self._cache["values"]

    def _tokens(self) -> Tensor:
        if "tokens" not in self._cache:
            self._cache["tokens"] = self.norm(self.x)
        return self._cache["tokens"]

    def _num_heads(self, part: Part) -> int:
        grouped = 1 if part == "q" else getattr(self.attn, "num_kv_groups", 1)
        return int(self.attn.num_heads) // int(grouped)

    def _heads(self, part: Part, tokens: Tensor) -> Tensor:
        """Project tokens ``(B, l, D)`` to queries, keys or values ``(B, H, l, d)``."""
        heads = self._num_heads(part)
        projected = F.linear(tokens, *_projection(self.attn, part)).unflatten(-1, (heads, -1)).transpose(1, 2)
        return _repeated(projected, self.attn.num_heads // heads, dim=1)

    def _scores(self, rows: slice) -> Tensor:
        """Return scaled products ``(B, H, l, L)`` of the queries of ``rows`` with all keys."""
        queries = self._queries(self._tokens()[:, rows])
        # the class token stands at no place and is not rotated
        return self._products(self._rotated(queries) if rows == _ALL else queries)

    def _queries(self, tokens: Tensor) -> Tensor:
        """Project tokens ``(B, l, D)`` to queries ``(B, H, l, d)``: after QK-norm, before any rotation."""
        queries = self._heads("q", tokens)
        return self.attn.q_norm(queries) if normalises_keys(self.attn) else queries

    def _products(self, queries: Tensor) -> Tensor:
        """Return scaled products ``(B, H, l, L)`` of queries ``(B, H, l, d)`` with all keys."""
        keys = self._rotated(self.keys())
        with torch.autocast(keys.device.type, enabled=False):
            return full_precision(queries) * self.attn.scale @ full_precision(keys).transpose(-2, -1)

    def _folded_scores(self, asking: Tensor) -> Tensor:
        """Return the products ``(B, H, 1, L)`` for one token ``(B, D)``, up to a constant, without making any key."""
        (query_weight, query_bias), (key_weight, _) = (_projection(self.attn, part) for part in ("q", "k"))
        heads = self._num_heads("k")
        tokens = full_precision(self._tokens())
        with torch.autocast(tokens.device.type, enabled=False):
            bias = None if query_bias is None else full_precision(query_bias)
            query = F.linear(full_precision(asking), full_precision(query_weight), bias)
            query = query.unflatten(-1, (self.attn.num_heads, -1)).transpose(0, 1) * self.attn.scale  # (H, B, d)
            weight = _repeated(full_precision(key_weight).unflatten(0, (heads, -1)), self.attn.num_heads // heads, 0)
            direction = (query @ weight).transpose(0, 1)  # (B, H, D)
            return (direction @ tokens.transpose(1, 2)).unsqueeze(2)

    def _rotated(self, heads: Tensor) -> Tensor:
        if self.rope is None:
            return heads
        prefix, patches = heads[:, :, : self.num_prefix_tokens], heads[:, :, self.num_prefix_tokens :]
        patches = apply_rot_embed_cat(patches, self.rope, half=getattr(self.attn, "rotate_half", False))
        return torch.cat([prefix, patches.to(prefix.dtype)], dim=2)

    def _softmax(self, scores: Tensor, rows: slice | None) -> Tensor:
        """Return the weights of tokens at ``rows``; None: of one that is not among them."""
        if self.distances is not None:
            table = full_precision(self.attn.relative_position_bias_table)
            scores = scores + relative_bias(self.distances[..., _CLASS if rows is None else rows, :], table)
        return self._hidden(scores, rows).softmax(dim=-1)

    def _hidden(self, scores: Tensor, rows: slice | None = None) -> Tensor:
        """Add the mask to scores ``(B, H, l, L)`` of tokens at ``rows``; None: of one that is not among them."""
        if self.mask is None:
            return scores
        mask = additive_mask(self.mask, scores.dtype)
        if mask.shape[-2] > 1:  # where every token sees itself, which one that is not there cannot
            mask = mask.amin(dim=-2, keepdim=True) if rows is None else mask[..., rows, :]
        return scores + mask


def check_attention(attn: nn.Module) -> None:
    """Refuse an attention module whose weights could not be read.

    Raises:
        UnsupportedBackbone: a module, or a projection in it, of a class that is not known here.
    """
    known = "timm's Attention, AttentionRope, EvaAttention and Beit's Attention"
    if type(attn) not in _KNOWN:
        raise UnsupportedBackbone(
            f"the attention of {type(attn).__name__} cannot be read; scorers and reducers that need it work with "
            f"{known}."
        )
    for name in ("qkv", "q_proj", "k_proj", "v_proj"):
        layer = getattr(attn, name, None)
        if layer is not None and type(layer) is not nn.Linear:
            raise UnsupportedBackbone(
                f"the attention's {name} is a {type(layer).__name__}; its weights can only be read from a plain "
                f"torch.nn.Linear (merge adapters such as LoRA first)."
            )


def relative_bias(distances: Tensor, table: Tensor) -> Tensor:
    """Look up BEiT's bias ``(1 or B, H, l, L)`` for distances ``(l, L)`` or ``(B, l, L)`` in a table ``(rows, H)``."""
    if distances.ndim == 2:
        distances = distances.unsqueeze(0)
    return F.embedding(distances, table).permute(0, 3, 1, 2).contiguous()


def normalises_keys(attn: nn.Module) -> bool:
    """Whether something stands between the projection of the keys and their use: QK-norm."""
    return not isinstance(getattr(attn, "k_norm", None), nn.Identity | None)


def _projection(attn: Any, part: Part) -> tuple[Tensor, Tensor | None]:
    """Return weight ``(H d, D)`` and bias of one of the three projections, fused or not."""
    if attn.qkv is None:
        layer = getattr(attn, f"{part}_proj")
        return layer.weight, layer.bias
    third = "qkv".index(part)
    bias = attn.qkv.bias
    if bias is None:  # Eva and Beit keep three vectors, or none
        return attn.qkv.weight.chunk(3)[third], getattr(attn, f"{part}_bias", None)
    return attn.qkv.weight.chunk(3)[third], bias.chunk(3)[third]


def _repeated(tensor: Tensor, times: int, dim: int) -> Tensor:
    """Give every head of a group of queries its own copy of their shared keys or values."""
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=dim)
