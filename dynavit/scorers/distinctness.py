"""How much would be lost if a token were merged: what merging by likeness asks, as a score."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.functional import NEVER, full_precision, take
from dynavit.scorers.attention import ClassAttention, block_attention
from dynavit.scorers.base import Scorer, StageView, create_scorer, register_scorer

_PARTS = 4


@register_scorer
class Distinctness(Scorer):
    """How unlike each token is to every more important one: of two tokens alike the more important one survives.

    The distance that density peaks are found by (Rodriguez and Laio 2014, "Clustering by fast search and find of
    density peaks", eq. 2), with importance for density: ``log(1 - cos)`` of a token's key, mean over the heads, and
    the most similar key among the more important tokens. With the reducer ``merge_nearest`` it is ToMe's matching
    (Bolya et al. 2023, https://arxiv.org/abs/2210.09461) with two differences: which one of a pair survives is no
    matter of its place, and any number of tokens may be merged at a stage.

    Keys get no gradient.

    Args:
        dim: token width D.
        importance: name of a scorer that reads the block's attention: ``attention``, which is that of the class token
            or, where there is none, of the mean of the patches; or another.

    Raises:
        InputError: ``importance`` is no scorer, or reads no attention of the block.
    """

    name = "distinctness"
    needs_attention = True

    def __init__(self, dim: int, importance: str = "attention") -> None:
        super().__init__()
        self.importance = importance
        self.scorer = create_scorer(importance, dim)
        reads_block = self.scorer.needs_attention and not self.scorer.needs_latent
        if not reads_block or self.scorer.learned or importance == self.name:
            raise InputError(
                f"scorer 'distinctness': importance={importance!r} is no score of the block's attention; choose "
                f"'attention', 'class_attention', 'mean_attention', 'value_attention' or 'attention_received'."
            )
        self.needs_class_token = self.scorer.needs_class_token

    @torch.no_grad()
    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        attention = block_attention(self, view)
        importance = self.scorer(tokens, mask, view)
        keys = full_precision(attention.mean_keys()[:, attention.num_prefix_tokens :])
        if mask is not None:  # a hidden token is nobody's more important one
            importance = importance.masked_fill(mask <= 0.5, NEVER)
        order = importance.argsort(dim=1, descending=True)
        keys = take(keys.contiguous(), order)
        keys = keys / torch.linalg.vector_norm(keys, dim=2, keepdim=True).clamp(min=1e-6)
        rank = torch.arange(keys.shape[1], device=keys.device)
        nearest, before = [], 0
        with torch.autocast(keys.device.type, enabled=False):
            # in parts, as no more than a quarter of all pairs should be held; none looks further than its last token
            for part in keys.tensor_split(_PARTS, dim=1):
                end = before + part.shape[1]
                cosine = part @ keys[:, :end].transpose(1, 2)
                nearest.append(cosine.masked_fill(rank[:end] >= rank[before:end, None], -1.0).amax(dim=2))
                before = end
        distance = (1 - torch.cat(nearest, dim=1)).clamp(min=1e-6).log()
        return torch.empty_like(distance).scatter(1, order, distance)

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        width = dim // num_heads
        # most scores make all keys, of which the mean is free; those of one query do not where attention folds
        keys = (num_prefix + n) * dim * width if folds and isinstance(self.scorer, ClassAttention) else 0
        parts = [n // _PARTS + (part < n % _PARTS) for part in range(_PARTS)]
        pairs = sum(part * end for part, end in zip(parts, accumulate(parts), strict=True))
        return self.scorer.macs(n, num_prefix, num_heads, dim, folds) + keys + pairs * width
