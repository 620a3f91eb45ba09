"""Scored merging: what is not kept is merged into the kept token most like it, and sizes are counted."""

from __future__ import annotations

import torch
from torch import Tensor

from dynavit.functional import full_precision
from dynavit.reducers.base import Reduced, Reducer, TokenSet
from dynavit.reducers.functional import absorb, nearest


class MergeNearest(Reducer):
    """Merge each dropped token into the kept token most similar to it, in a mean weighted by sizes.

    Scores say which tokens survive, as in TPS (Wei et al. 2023, https://arxiv.org/abs/2304.10716); similarity says
    where the others go, and means and attention count every patch once, as in ToMe (Bolya et al. 2023,
    https://arxiv.org/abs/2210.09461): a kept token x becomes ``(s x + sum s_y y) / (s + sum s_y)`` over the dropped
    tokens y of which it has the highest cosine, with s the number of patches that each stands for. The model adds
    ``log s`` to the token's key in attention and pools by s. Any number of tokens may be merged at a stage.

    The choice of partners gets no gradient; the mean passes its gradient on to all of its members.
    """

    name = "merge_nearest"
    tracks_sizes = True

    def forward(self, kept: TokenSet, dropped: TokenSet) -> Reduced:
        _, target = nearest(dropped.tokens.detach(), kept.tokens.detach(), kept.counts)
        size, sent = _size(kept), _size(dropped)
        if dropped.counts is not None:
            sent = torch.where(dropped.counts, sent, 0.0)
        tokens, received = absorb(kept.tokens, size, dropped.tokens, sent, target)
        return Reduced(tokens, target=target, size=size + received)

    def macs(self, k: int, q: int, dim: int) -> int:
        return 2 * k * q * dim


def _size(part: TokenSet) -> Tensor:
    return full_precision(part.tokens.new_ones(part.tokens.shape[:2])) if part.size is None else part.size
