"""Numbers of repeated runs, and how tables show them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """Mean and range over the seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise one number per seed; one NaN makes all three NaN."""
        values = list(values)
        if any(math.isnan(value) for value in values):
            return cls(math.nan, math.nan, math.nan)
        return cls(sum(values) / len(values), min(values), max(values))


def quantile(values: Sequence[float], q: float) -> float:
    """Return a quantile, interpolated; infinite values count as the largest."""
    finite = torch.tensor(values, dtype=torch.float64).nan_to_num(nan=math.inf, posinf=math.inf)
    return float(finite.quantile(q)) if finite.isfinite().all() else float(finite.quantile(q, interpolation="higher"))


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def short(value: float) -> str:
    """Write a number of any size in a few characters.

    Example:
        >>> [short(x) for x in (5.6e9, 224.1, 3.91, 0.0551, 0.0)]
        ['5.6e9', '224', '3.9', '0.055', '0']
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) >= 1e4 or abs(value) < 1e-3:
        return f"{value:.1e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    digits = max(1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{digits}f}"


def with_range(spread: Spread, decimals: int) -> str:
    """Write a spread as ``mean [low, high]``.

    Example:
        >>> with_range(Spread(0.94, 0.9, 0.98), 2)
        '0.94 [0.90, 0.98]'
    """
    return f"{spread.mean:.{decimals}f} [{spread.low:.{decimals}f}, {spread.high:.{decimals}f}]"
