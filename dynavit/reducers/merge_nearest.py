"""Scored merging: what is not kept is merged into the kept token most like it, and sizes are counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynavit.errors import InputError
from dynavit.functional import full_precision
from dynavit.reducers.base import Reduced, Reducer, TokenSet
from dynavit.reducers.functional import absorb, nearest

_MOST = 60.0  # fp32 holds exp of a little more


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

    Weighted, a token with logit a enters the mean by ``s exp(beta a)``, as in MCTF (Lee et al. 2024,
    https://arxiv.org/abs/2403.10030) by its importance; counted it is as s all the same. Through these weights the task
    loss reaches the logits, whatever the selector: it is the exact gradient of the mean while survivors and partners
    stay who they are, sums to zero in every group, and says nothing of a survivor that nobody is merged into. beta is
    learned and starts at 0, where this is the mean by sizes: in the first step it has a gradient, and logits have none.

    Args:
        weighted: weigh the mean by scores, too.

    Raises:
        InputError: ``weighted`` is no bool.
    """

    name = "merge_nearest"
    tracks_sizes = True

    def __init__(self, weighted: bool = False) -> None:
        super().__init__()
        if not isinstance(weighted, bool):
            raise InputError(f"reducer 'merge_nearest': weighted={weighted!r}; choose true or false.")
        self.weighted = self.trains_scorer = weighted
        self.beta = nn.Parameter(torch.zeros(1)) if weighted else None

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
        factor = None if self.beta is None else self._factor(self.beta, kept, dropped, into)
        mean, received = absorb(kept.tokens, own, tokens, sent, into, factor)
        return Reduced(mean, target=target, size=alone + received)

    def _factor(self, beta: Tensor, kept: TokenSet, dropped: TokenSet, into: Tensor) -> Tensor:
        """Return ``exp(beta (a - a'))``, of dropped tokens and after them kept ones that are sent ``into`` others.

        a' is the logit of the receiver, which so keeps its size as its weight: a mean does not notice such a factor.
        """
        receivers = _logits(kept)
        logits = torch.cat([_logits(dropped), receivers], dim=1)[:, : into.shape[1]]
        return (full_precision(beta) * (logits - receivers.gather(1, into))).clamp(max=_MOST).exp()

    def macs(self, k: int, q: int, dim: int) -> int:
        return 2 * k * q * dim


def _logits(part: TokenSet) -> Tensor:
    logits = full_precision(part.logits)
    return logits if part.counts is None else logits.masked_fill(~part.counts, 0.0)


def _size(part: TokenSet) -> Tensor:
    return full_precision(part.tokens.new_ones(part.tokens.shape[:2])) if part.size is None else part.size
