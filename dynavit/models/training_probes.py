"""Probes: dropped tokens that stay in a gathered training batch, hidden, until the next stage has scored.

What tells a scorer that it dropped the wrong token is the gradient of that token's mask. Gathering alone takes it away
with the token, and even a good scorer unlearns. But a token whose mask is 0 influences no other, so the gradient of its
mask does not depend on which other dropped tokens are present: some of them, drawn uniformly and weighted by one over
their share, give the gradient of mask execution in expectation, at the cost of a few more tokens.

Shapes: B batch, n tokens present beside the prefix, k of them kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.functional import uniform
from dynavit.selectors.functional import straight_through

DEFAULT_PROBES = 8


@dataclass(frozen=True)
class Probes:
    """How a stage draws its probes.

    Attributes:
        count: probes of the images that keep the most tokens, k; those that keep fewer get more, up to k + count rows.
        generator: source of the draw; the global one if None.
    """

    count: int
    generator: torch.Generator | None = None

    def draw(self, mask: Tensor, keep: Tensor, dropped: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Draw which tokens go on: those kept, ascending, then probes, then dead ones where there are too few.

        Args:
            mask: ``(B, n)`` of this stage, 1 for kept tokens and 0 for others, with its gradient.
            keep: ``(B, n)`` bool.
            dropped: ``(B, n)`` bool, the tokens that this stage drops. Others, beside those kept, are dead already.
            k: the largest number kept in any image.

        Returns:
            Where they stand, ``(B, l)`` int64 with l = min(k + count, n), and the mask ``(B, n)``. Its gradient is
            multiplied by 1 for kept tokens, by the number of dropped tokens over that of probes for probes, and by 0
            for others.
        """
        n = keep.shape[1]
        chance = uniform(keep, self.generator)
        order = torch.where(keep, torch.arange(n, device=keep.device) - n, torch.where(dropped, chance, 2.0))
        index = order.topk(min(k + self.count, n), dim=1, largest=False, sorted=True).indices
        probes = dropped.gather(1, index)
        num_dropped, num_probes = (chosen.sum(dim=1, keepdim=True).to(mask.dtype) for chosen in (dropped, probes))
        drawn = torch.zeros_like(keep).scatter(1, index, probes)
        weight = torch.where(drawn, num_dropped / num_probes.clamp(min=1), keep.to(mask.dtype))
        return index, weigh_gradient(mask, weight)


def weigh_gradient(mask: Tensor, weight: Tensor) -> Tensor:
    """Return the mask's value with its gradient multiplied by ``weight``."""
    return straight_through(mask.detach(), mask * weight)


def checked_probes(count: Any) -> int:
    """Return a number of probes.

    Raises:
        InputError: no whole number, or a negative one.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise InputError(f"probes={count!r}: give a whole number, such as {DEFAULT_PROBES}, or 0 for none.")
    return count
