"""Squeezing: what is not kept goes into the kept token most like it."""

from __future__ import annotations

import math

from dynavit.reducers.base import Reduced, Reducer, TokenSet
from dynavit.reducers.functional import absorb, hide, nearest


class Squeeze(Reducer):
    """Mix each dropped token into the kept token most similar to it.

    TPS, Wei et al. 2023, https://arxiv.org/abs/2304.10716, section 3.2: each dropped token y is matched to
    the kept token x of the highest cosine, and x becomes ``(e x + sum exp(cos) y) / (e + sum exp(cos))``.
    Kept tokens that nothing is matched to stay exactly as they are. Scores play no part: logits get no
    gradient from here.
    """

    name = "squeeze"

    def forward(self, kept: TokenSet, dropped: TokenSet) -> Reduced:
        cosine, target = nearest(dropped.tokens, kept.tokens, kept.counts)
        weight = hide(cosine, dropped.counts).exp()
        tokens, _ = absorb(kept.tokens, math.e, dropped.tokens, weight, target)
        return Reduced(tokens, target=target)

    def macs(self, k: int, q: int, dim: int) -> int:
        return 2 * k * q * dim
