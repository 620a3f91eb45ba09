"""Merging: the most similar pairs of tokens become one each; no scores are needed.

Shapes: B batch, n patch-like tokens present, k of them to remain, D width, d width of the metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynavit.errors import InputError
from dynavit.functional import take
from dynavit.reducers.functional import absorb, nearest


@dataclass(frozen=True)
class Merged:
    """The outcome of one stage.

    Attributes:
        tokens: ``(B, k, D)``.
        size: ``(B, k)``, how many patches each stands for.
        index: ``(B, k)`` int64, the slot among the n whose place (position, rotation) each one keeps.
        target: ``(B, n)`` int64, the slot among the k that holds each token now.
    """

    tokens: Tensor
    size: Tensor
    index: Tensor
    target: Tensor


class Merge(nn.Module):
    """Merge the most similar tokens into their size-weighted means; reads keys, not scores.

    Bipartite soft matching of ToMe, Bolya et al. 2023, https://arxiv.org/abs/2210.09461, section 3: every
    second token (A: 1, 3, 5, ..) looks for its most similar one among the others (B: 0, 2, 4, ..), and the
    n - k of them with the most similar partner are merged into it. Prefix tokens take no part; with the
    class token counted in front, A and B are ToMe's own.

    Args:
        proportional: attention adds the logarithm of a token's size to its key (ToMe's proportional
            attention), which the model does; False leaves attention as it is.

    Raises:
        InputError: ``proportional`` is no bool.
    """

    name = "merge"

    def __init__(self, proportional: bool = True) -> None:
        super().__init__()
        if not isinstance(proportional, bool):
            raise InputError(f"reducer 'merge': proportional={proportional!r}; choose true or false.")
        self.proportional = proportional

    def forward(self, tokens: Tensor, metric: Tensor, size: Tensor, k: int) -> Merged:
        """Merge n tokens until k remain: those of A left over, in their order, then all of B.

        Equal similarities go to the lowest index.

        Args:
            tokens: ``(B, n, D)``.
            metric: ``(B, n, d)``, what is compared by cosine, ToMe's mean over heads of the keys. It gets
                no gradient.
            size: ``(B, n)`` fp32, above 0: how many patches each token stands for.
            k: tokens to remain, at least those of B: half of n, rounded up.

        Raises:
            InputError: ``k`` is less than that or more than n.
        """
        n = tokens.shape[1]
        num_a, num_merged = n // 2, n - k
        if not 0 <= num_merged <= num_a:
            raise InputError(
                f"reducer 'merge' cannot leave {k} of {n} tokens: merging at most halves them at a stage "
                f"({n - num_a} to {n}); keep more, or use more stages."
            )
        similarity, partner = nearest(metric[:, 1::2].detach(), metric[:, ::2].detach())
        order = _order(similarity, num_merged)
        rest, merged = order[:, : num_a - num_merged], order[:, num_a - num_merged :]

        tokens_a, tokens_b = tokens[:, 1::2], tokens[:, ::2]
        size_a, size_b = size[:, 1::2], size[:, ::2]
        into = partner.gather(1, merged)
        tokens_b, received = absorb(tokens_b, size_b, take(tokens_a, merged), size_a.gather(1, merged), into)
        b = torch.arange(n - num_a, device=tokens.device).expand(tokens.shape[0], -1)
        slot_b = num_a - num_merged
        # where each of A is now: its place in `rest`, or its partner's in B
        target_a = torch.zeros_like(partner).scatter(1, order, torch.cat([_count(rest), slot_b + into], dim=1))
        return Merged(
            tokens=torch.cat([take(tokens_a, rest), tokens_b], dim=1),
            size=torch.cat([size_a.gather(1, rest), size_b + received], dim=1),
            index=torch.cat([2 * rest + 1, 2 * b], dim=1),
            target=_interleave(slot_b + b, target_a),
        )

    def macs(self, k: int, q: int, dim: int, metric_dim: int) -> int:
        """Return the multiply-accumulates of one image that merges ``q`` tokens and leaves ``k``.

        Args:
            k: tokens to remain.
            q: tokens merged.
            dim: token width D.
            metric_dim: width of what is compared.
        """
        num_a = (k + q) // 2
        num_b = k + q - num_a
        return num_a * num_b * metric_dim + num_b * q * dim


def _order(similarity: Tensor, num_merged: int) -> Tensor:
    """Order A's tokens ``(B, a)``: those left over by their index, then the most similar, the closest first.

    Ranks are counted, not sorted: sorting leaves the order of equal values open, and this exports.
    """
    index = torch.arange(similarity.shape[1], device=similarity.device)
    mine, other = similarity.unsqueeze(2), similarity.unsqueeze(1)
    before = (other > mine) | ((other == mine) & (index < index.unsqueeze(1)))
    rank = before.sum(dim=2)
    left = rank >= num_merged
    place = torch.where(left, left.cumsum(dim=1) - 1, similarity.shape[1] - num_merged + rank)
    return torch.zeros_like(place).scatter(1, place, index.expand_as(place))


def _count(index: Tensor) -> Tensor:
    return torch.arange(index.shape[1], device=index.device).expand_as(index)


def _interleave(even: Tensor, odd: Tensor) -> Tensor:
    """Return ``(B, n)`` with ``even`` at 0, 2, 4, .. and ``odd`` at 1, 3, 5, .."""
    half = even.shape[1]
    index = torch.arange(half + odd.shape[1], device=even.device)
    return torch.cat([even, odd], dim=1)[:, index // 2 + half * (index % 2)]
