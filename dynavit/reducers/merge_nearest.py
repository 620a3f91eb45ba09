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

    While a scorer learns by masks, the formula is that of fractional masks m: ``s m`` of a token's patches stay in it,
    ``s (1 - m)`` go to the kept token most similar to it, but never itself. Masks are 0 or 1, so this changes gradients
    alone: a mask's gradient says what it would change to keep the token rather than to merge it, which is nothing where
    there is a copy of it. It is exact along this way; the choice of partners gets none.
    """

    name = "merge_nearest"
    tracks_sizes = True

    def forward(self, kept: TokenSet, dropped: TokenSet) -> Reduced:
        size, sent, counts = _size(kept), _size(dropped), kept.counts
        if dropped.mask is not None:
            sent = sent * dropped.mask
        tokens = dropped.tokens
        _, target = nearest(tokens.detach(), kept.tokens.detach(), counts)
        alone, own, into = size, size, target
        if kept.mask is not None and counts is not None:
            alone = size * kept.mask
            own = torch.where(counts, alone, 1.0)  # a weight above 0 for rows that nobody reads, too
            if kept.mask.requires_grad:
                _, other = nearest(kept.tokens.detach(), kept.tokens.detach(), counts, but_itself=True)
                tokens, into = torch.cat([tokens, kept.tokens], dim=1), torch.cat([into, other], dim=1)
                sent = torch.cat([sent, torch.where(counts, size - alone, 0.0)], dim=1)
        mean, received = absorb(kept.tokens, own, tokens, sent, into)
        return Reduced(mean, target=target, size=alone + received)

    def macs(self, k: int, q: int, dim: int) -> int:
        return 2 * k * q * dim


def _size(part: TokenSet) -> Tensor:
    return full_precision(part.tokens.new_ones(part.tokens.shape[:2])) if part.size is None else part.size
