"""How much would be lost if a token were merged: what merging by likeness asks, as a score."""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dynavit.errors import InputError
from dynavit.functional import NEVER, full_precision, take
from dynavit.scorers.attention import ClassAttention, block_attention
from dynavit.scorers.base import Scorer, StageView, create_scorer, register_scorer

_PARTS = 4


@register_scorer
class Distinctness(Scorer):
    """How unlike each token is to every more important one: of two tokens alike the more important one survives.

    The distance that density peaks are found by (Rodriguez and Laio 2014, "Clustering by fast search and find of
    density peaks", eq. 2), with importance for density: ``log(1 - cos)`` of a token and the most similar one among the
    more important ones. Of tokens it is the cosine by which the reducer ``merge_nearest`` finds who merges with whom;
    of keys that of ToMe (Bolya et al. 2023, https://arxiv.org/abs/2210.09461), from whose matching it then differs in
    two things: which one of a pair survives may be a matter of importance, and any number of tokens may be merged.

    Nothing gets a gradient.

    Args:
        dim: token width D.
        importance: name of a scorer that reads the block's attention: ``attention``, which is that of the class token
            or, where there is none, of the mean of the patches; or another. None: the first patch counts most, the last
            one least, and nothing but the tokens is read.
        of: what is compared: "tokens", or "keys" of the block, mean over the heads.

    Raises:
        InputError: ``importance`` is no scorer, or reads no attention of the block; another ``of``.
    """

    name = "distinctness"

    def __init__(self, dim: int, importance: str | None = None, of: Literal["tokens", "keys"] = "tokens") -> None:
        super().__init__()
        if of not in ("tokens", "keys"):
            raise InputError(f"scorer 'distinctness': of={of!r}; choose 'tokens' or 'keys'.")
        self.importance, self.of = importance, of
        self.scorer = None if importance is None else create_scorer(importance, dim)
        self.needs_attention = of == "keys" or self.scorer is not None
        if self.scorer is not None:
            reads_block = self.scorer.needs_attention and not self.scorer.needs_latent
            if not reads_block or self.scorer.learned or importance == self.name:
                raise InputError(
                    f"scorer 'distinctness': importance={importance!r} is no score of the block's attention; choose "
                    f"'attention', 'class_attention', 'mean_attention', 'value_attention' or 'attention_received'."
                )
            self.needs_class_token = self.scorer.needs_class_token

    @torch.no_grad()
    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        importance = None if self.scorer is None else self.scorer(tokens, mask, view)
        compared = self._compared(tokens, view)  # by then importance may have made the keys
        if mask is not None:  # a hidden token is nobody's more important one
            if importance is None:
                importance = -torch.arange(mask.shape[1], device=mask.device).to(mask).expand_as(mask)
            importance = importance.masked_fill(mask <= 0.5, NEVER)
        if importance is None:
            return _distance_to_earlier(compared)
        order = importance.argsort(dim=1, descending=True)
        distance = _distance_to_earlier(take(compared.contiguous(), order))
        return torch.empty_like(distance).scatter(1, order, distance)

    def _compared(self, tokens: Tensor, view: StageView | None) -> Tensor:
        if self.of == "keys":
            attention = block_attention(self, view)
            tokens = attention.mean_keys()[:, attention.num_prefix_tokens :]
        return F.normalize(full_precision(tokens), dim=2, eps=1e-6)

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        width = dim if self.of == "tokens" else dim // num_heads
        parts = [n // _PARTS + (part < n % _PARTS) for part in range(_PARTS)]
        pairs = sum(part * end for part, end in zip(parts, accumulate(parts), strict=True))
        # most scores make all keys, of which the mean is free; those of one query do not where attention folds
        has_keys = self.scorer is not None and not (folds and isinstance(self.scorer, ClassAttention))
        keys = 0 if self.of == "tokens" or has_keys else (num_prefix + n) * dim * width
        importance = 0 if self.scorer is None else self.scorer.macs(n, num_prefix, num_heads, dim, folds)
        return importance + keys + pairs * width


def _distance_to_earlier(x: Tensor) -> Tensor:
    """Return the logarithm ``(B, n)`` of 1 - cos of each row of ``(B, n, D)``, of length 1, and the nearest before."""
    rank = torch.arange(x.shape[1], device=x.device)
    nearest, before = [], 0
    with torch.autocast(x.device.type, enabled=False):
        # in parts, as no more than a quarter of all pairs should be held; none looks further than its last row
        for part in x.tensor_split(_PARTS, dim=1):
            end = before + part.shape[1]
            cosine = part @ x[:, :end].transpose(1, 2)
            nearest.append(cosine.masked_fill(rank[:end] >= rank[before:end, None], -1.0).amax(dim=2))
            before = end
    return (1 - torch.cat(nearest, dim=1)).clamp(min=1e-6).log()
