"""Fusing: what is not kept goes on as one token."""

from __future__ import annotations

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.functional import full_precision
from dynavit.reducers.base import Reduced, Reducer, TokenSet
from dynavit.reducers.functional import hide, weighted_sum


class Fuse(Reducer):
    """Sum the dropped tokens, weighted by their scores, into one new token.

    EViT, Liang et al. 2022, https://arxiv.org/abs/2202.07800, section 3.3. The gradient of the new token
    reaches the dropped tokens and their logits.

    Args:
        normalize: weights are the softmax of the dropped tokens' logits, whose scale then does not
            matter. False: ``exp(logit)`` as it is, which with the scorer ``class_attention`` (logits are
            logarithms of attention, at most 0) is EViT's fused token; other scorers set no bound to it.

    Raises:
        InputError: ``normalize`` is no bool.
    """

    name = "fuse"
    makes = 1

    def __init__(self, normalize: bool = True) -> None:
        super().__init__()
        if not isinstance(normalize, bool):
            raise InputError(f"reducer 'fuse': normalize={normalize!r}; choose true or false.")
        self.normalize = normalize

    def forward(self, kept: TokenSet, dropped: TokenSet) -> Reduced:
        made = fused_token(dropped, normalize=self.normalize)
        return Reduced(kept.tokens, made, torch.full_like(dropped.logits, kept.tokens.shape[1], dtype=torch.int64))

    def macs(self, k: int, q: int, dim: int) -> int:
        return q * dim


def fused_token(dropped: TokenSet, *, normalize: bool) -> Tensor:
    """Return the sum ``(B, 1, D)`` of the tokens that count, weighted by ``exp(logit)`` or their softmax.

    It is zero for an image in which none counts. Kept tokens have no part in the normalisation, so it is
    safe however far above the dropped ones they score.
    """
    logits = hide(full_precision(dropped.logits), dropped.counts)
    if normalize:
        weights = logits.softmax(dim=1)
        if dropped.counts is not None:  # where none counts, the softmax is uniform
            weights = torch.where(dropped.counts, weights, 0.0)
    else:
        weights = logits.exp()
    return weighted_sum(weights.unsqueeze(1), dropped.tokens)
