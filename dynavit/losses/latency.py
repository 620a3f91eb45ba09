"""Expected latency of a random number of tokens, exactly, and the loss that steers it.

Latency depends on how many tokens are kept. With independent gates that number follows the
Poisson-binomial distribution, so the expectation of a measured latency has an exact gradient and
needs no sampling, although the measurement itself has none.

Shapes: B batch, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dynavit.errors import InputError
from dynavit.functional import full_precision


def poisson_binomial(probs: Tensor) -> Tensor:
    """Return the distribution of how many of N independent tokens are kept.

    The distribution of a sum is the convolution of its parts' distributions: of single tokens, then
    pairs, then pairs of pairs. This takes O(N^2) operations in O(log N) steps, and only adds and
    multiplies numbers that are not negative, so that small probabilities stay exact to rounding.

    Args:
        probs: ``(B, N)``, the probability that each token is kept; 0 where it was dropped before.

    Returns:
        ``(B, N + 1)`` in fp32 (fp64 for fp64 probabilities), differentiable: the probability that
        0, 1, ... N tokens are kept.

    Example:
        >>> poisson_binomial(torch.tensor([[0.5, 0.5, 1.0]]))
        tensor([[0.0000, 0.2500, 0.5000, 0.2500]])
    """
    with torch.autocast(probs.device.type, enabled=False):
        return _distribution(full_precision(probs))


def _distribution(probs: Tensor) -> Tensor:
    parts = torch.stack([1 - probs, probs], dim=-1)  # (B, number of parts, tokens of a part + 1)
    while parts.shape[1] > 1:
        if parts.shape[1] % 2:  # a part that is certain to keep nothing
            nothing = functional.pad(torch.ones_like(parts[:, :1, :1]), (0, parts.shape[2] - 1))
            parts = torch.cat([parts, nothing], dim=1)
        parts = _convolve(parts[:, 0::2], parts[:, 1::2])
    return parts[:, 0, : probs.shape[1] + 1]


def _convolve(a: Tensor, b: Tensor) -> Tensor:
    """Convolve along the last dimension, of length n in both: ``c[m] = sum over i of a[i] b[m - i]``."""
    n = a.shape[-1]
    windows = functional.pad(b, (n - 1, n - 1)).unfold(-1, n, 1)  # (..., 2 n - 1, n)
    return (windows * a.flip(-1).unsqueeze(-2)).sum(dim=-1)  # not a matrix product, which TF32 would round


def expected_latency(probs: Tensor, table: Tensor) -> Tensor:
    """Return the expected latency ``(B,)`` of tokens that are kept independently.

    Not the latency of the expected count: the two differ wherever latency is no straight line.

    Args:
        probs: ``(B, N)``, the probability that each token is kept.
        table: ``(N + 1,)``, the latency of 0, 1, ... N tokens in any unit, as
            :func:`dynavit.cost.latency.block_latency` measures it.

    Raises:
        InputError: a table of another length.

    Example:
        >>> expected_latency(torch.tensor([[0.5, 0.5]]), torch.tensor([1.0, 1.0, 5.0]))
        tensor([2.])
    """
    if table.shape != (probs.shape[1] + 1,):
        raise InputError(
            f"expected_latency: a table of shape {tuple(table.shape)} for {probs.shape[1]} tokens; it needs "
            f"{probs.shape[1] + 1} numbers, the latency of 0 to {probs.shape[1]} tokens."
        )
    distribution = poisson_binomial(probs)
    return (distribution * table.to(distribution)).sum(dim=1)


def latency_loss(probs: Sequence[Tensor], counts: Sequence[int | Tensor], table: Tensor) -> Tensor:
    """Return the mean over stages of ``((E[T(n)] - T(k)) / T(N))^2`` for a latency T of n tokens.

    The latency counterpart of :func:`dynavit.losses.keep_ratio_loss`, for selectors whose count is
    expected: every image has to meet the latency of the wanted count after every stage, as a fraction
    of the unpruned one. Where T is a straight line that is the keep ratio times its slope.

    Args:
        probs: one ``(B, N)`` tensor a stage: the probability that each of the N original patches is
            still there; given what earlier stages drop, independent.
        counts: tokens wanted after each stage: k, or ``(B,)`` where images differ.
        table: ``(N + 1,)``, the latency of a block with 0, 1, ... N patch tokens, in any unit.

    Returns:
        A scalar: the mean over images and stages.

    Raises:
        InputError: no stage, another number of counts than of stages, or a table of another length.
    """
    if not probs or len(probs) != len(counts):
        raise InputError(
            f"latency_loss: {len(probs)} stages and {len(counts)} counts; it needs one count a stage and at "
            f"least one stage."
        )
    table = table.to(probs[0].device)
    relative = table / table[-1]
    terms = [(expected_latency(p, relative) - relative[k]).square().mean() for p, k in zip(probs, counts, strict=True)]
    return torch.stack(terms).mean()
