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
        parts: the k tokens ``(B, k, D)`` in two parts: those left over, and those that others were merged into.
        size: ``(B, k)``, how many patches each stands for.
        index: ``(B, k)`` int64, the slot among the n whose place (position, rotation) each one keeps.
        merged: ``(B, n - k)`` int64, the slots among the n of the tokens that are merged into others.
        into: ``(B, n - k)`` int64, the slots among the k of those others.
    """

    parts: tuple[Tensor, Tensor]
    size: Tensor
    index: Tensor
    merged: Tensor
    into: Tensor

    def target(self) -> Tensor:
        """Return ``(B, n)`` int64, the slot among the k that holds each of the n tokens now."""
        slots = torch.arange(self.index.shape[1], device=self.index.device).expand_as(self.index)
        held = torch.cat([self.index, self.merged], dim=1)
        return torch.zeros_like(held).scatter(1, held, torch.cat([slots, self.into], dim=1))


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
    makes = 0
    masks = False
    last_only = False
    tracks_sizes = True
    trains_scorer = False

    def __init__(self, proportional: bool = True) -> None:
        super().__init__()
        if not isinstance(proportional, bool):
            raise InputError(f"reducer 'merge': proportional={proportional!r}; choose true or false.")
        self.proportional = proportional

    def forward(self, tokens: Tensor, metric: Tensor, size: Tensor, k: int) -> Merged:
        """Merge n tokens until k remain: those of A left over, in their order, then all of B.

        Of equal similarities the lowest index comes first, but on a GPU any.

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
        order = similarity.argsort(dim=1, descending=True)
        merged, rest = order[:, :num_merged], order[:, num_merged:].sort(dim=1).values
        into = partner.gather(1, merged)
        tokens_a, tokens_b = tokens[:, 1::2], tokens[:, ::2]
        size_a, size_b = size[:, 1::2], size[:, ::2]
        tokens_b, received = absorb(tokens_b, size_b, take(tokens_a, merged), size_a.gather(1, merged), into)
        even = torch.arange(0, n, 2, device=tokens.device).expand(tokens.shape[0], -1)
        return Merged(
            parts=(take(tokens_a, rest), tokens_b),
            size=torch.cat([size_a.gather(1, rest), size_b + received], dim=1),
            index=torch.cat([2 * rest + 1, even], dim=1),
            merged=2 * merged + 1,
            into=rest.shape[1] + into,
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
