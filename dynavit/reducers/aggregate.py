"""Aggregating: the kept tokens become a fixed number of learned mixtures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynavit.errors import InputError
from dynavit.functional import full_precision, log_mask
from dynavit.reducers.base import Reduced, Reducer, TokenSet
from dynavit.reducers.functional import hide, weighted_sum
from dynavit.reducers.fuse import fused_token


class Aggregate(Reducer):
    """Replace the kept tokens by learned mixtures of them, and the dropped ones by one token.

    Token aggregation of LAPS (Fu et al. 2024, "Linguistic-Aware Patch Slimming") and SEPS
    (https://arxiv.org/abs/2511.01390, eq. 4): with ``W = softmax(scale * MLP(tokens))`` over the kept
    tokens, new token j is ``sum_i W_ij token_i``. The dropped tokens are fused by the softmax of their
    logits. The new tokens belong to no place, so this acts once, at the last stage; in eval not at all where that
    stage keeps everything, so a model trained with it is evaluated below ratio 1.

    The kept tokens' mask enters as :func:`~dynavit.functional.log_mask`. The published
    ``-(1 - mask) * 1e10`` has the same value and a gradient 1e10 times as large, which destroys training.

    Args:
        dim: token width D.
        tokens: number of mixtures.

    Raises:
        InputError: ``tokens`` is no whole number above 0.
    """

    name = "aggregate"
    makes = 1
    masks = False
    last_only = True
    keeps_places = False

    def __init__(self, dim: int, tokens: int = 32) -> None:
        super().__init__()
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise InputError(f"reducer 'aggregate': tokens={tokens!r}; give a whole number of at least 1.")
        self.tokens = tokens
        self.hidden = max(1, dim // 5)
        # a last bias would shift all tokens alike, which the softmax over them does not notice
        last = nn.Linear(self.hidden, tokens, bias=False)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, self.hidden), nn.GELU(), last)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, kept: TokenSet, dropped: TokenSet) -> Reduced:
        """Return ``(B, tokens, D)`` mixtures and one made token ``(B, 1, D)``, the target of all dropped ones."""
        mixed = weighted_sum(self.weights(kept), kept.tokens)
        made = fused_token(dropped, normalize=True)
        return Reduced(mixed, made, torch.full_like(dropped.logits, self.tokens, dtype=torch.int64))

    def weights(self, kept: TokenSet) -> Tensor:
        """Return the share of each kept token in each mixture, ``(B, tokens, k)`` fp32; rows sum to 1."""
        logits = full_precision(self.scale * self.mlp(kept.tokens)).transpose(1, 2)
        if kept.mask is not None:
            logits = logits + log_mask(kept.mask).unsqueeze(1)
        return hide(logits, kept.counts).softmax(dim=2)

    def leaves(self, k: int) -> int:
        return self.tokens + self.makes

    def macs(self, k: int, q: int, dim: int) -> int:
        return k * self.hidden * (dim + self.tokens) + k * self.tokens * dim + q * dim
