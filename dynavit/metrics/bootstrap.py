"""Whether a difference between two models is more than the choice of test identities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dynavit.errors import InputError

_BLOCK = 1 << 22  # drawn groups held at once


def paired_bootstrap(
    values_a: ArrayLike | Tensor,
    values_b: ArrayLike | Tensor,
    groups: ArrayLike | Tensor,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Return the mean of b minus the mean of a, and its percentile bootstrap interval.

    Whole groups are drawn, as many as there are, with replacement: the queries of one identity are
    easy or hard together, and drawing them one by one would make the interval too narrow. Both models
    get the same draw, so that what is hard for both cancels (Efron and Tibshirani, An Introduction to
    the Bootstrap, 1993, chapter 13). With few groups the interval is somewhat
    too narrow.

    Args:
        values_a: V numbers, one a query: average precisions, or hits at rank 1.
        values_b: those of the other model, for the same queries in the same order.
        groups: V integers, the queries' identities.
        samples: how many draws.
        seed: of the draws.
        level: how much of the draws' differences lies in the interval.

    Raises:
        InputError: different lengths, values that are not finite, fewer than two groups, or samples or
            level out of range.

    Example:
        >>> paired_bootstrap([50.0, 60.0, 70.0], [52.0, 62.0, 72.0], groups=[1, 1, 2])
        (2.0, 2.0, 2.0)
    """
    a, b, identities = _array(values_a), _array(values_b), _array(groups)
    if a.ndim != 1 or a.shape != b.shape or a.shape != identities.shape:
        raise InputError(
            f"paired_bootstrap needs values_a, values_b and groups of one length, not {a.shape}, {b.shape} and "
            f"{identities.shape}."
        )
    return bootstrap_interval(b.astype(np.float64) - a.astype(np.float64), identities, samples, seed, level)


def bootstrap_interval(
    values: ArrayLike | Tensor, groups: ArrayLike | Tensor, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Return the mean of values ``(V,)`` and its percentile interval when whole groups ``(V,)`` are drawn again.

    Raises:
        InputError: values that are not finite, fewer than two groups, or samples or level out of range.

    Example:
        >>> bootstrap_interval([50.0, 50.0, 50.0], groups=[1, 1, 2])
        (50.0, 50.0, 50.0)
    """
    numbers, identities = _array(values).astype(np.float64), _array(groups)
    if not np.isfinite(numbers).all():
        raise InputError("a bootstrap was given values that are not finite.")
    if samples < 1 or not 0 < level < 1:
        raise InputError(f"samples={samples}, level={level}: samples is 1 or more, level between 0 and 1.")
    names, group = np.unique(identities, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"a bootstrap draws groups and needs two or more; groups holds {len(names)}.")
    sums, sizes = np.bincount(group, weights=numbers).astype(np.float64), np.bincount(group)
    means = _drawn_means(sums, sizes, samples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(numbers.mean()), float(low), float(high)


def _drawn_means(
    sums: NDArray[np.float64], sizes: NDArray[np.int64], samples: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Return the mean over all queries of the groups drawn, for each sample."""
    count = len(sums)
    means = np.empty(samples)
    rows = max(1, _BLOCK // count)
    for start in range(0, samples, rows):
        drawn = random.integers(count, size=(min(rows, samples - start), count))
        means[start : start + rows] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def _array(values: ArrayLike | Tensor) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
