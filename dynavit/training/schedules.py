"""Everything that moves while training, as functions of the number of optimiser steps done.

They hold no state: the step is saved with the run and restored, and evaluations, extra forwards,
gradient accumulation and activation checkpointing cannot advance it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynavit.models.counts import stage_counts

_CURVES: dict[str, Callable[[float, float, float], float]] = {
    "exponential": lambda start, end, t: start * (end / start) ** t,
    "cosine": lambda start, end, t: end + (start - end) * (1 + math.cos(math.pi * t)) / 2,
    "linear": lambda start, end, t: start + (end - start) * t,
}


def anneal(kind: str, start: float, end: float, fraction: float) -> float:
    """Return the value a ``fraction`` of the way from start to end, clamped to its ends.

    Example:
        >>> round(anneal("exponential", 1.0, 0.01, 0.5), 6)
        0.1
    """
    return _CURVES[kind](start, end, min(max(fraction, 0.0), 1.0))


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up to 1, then a cosine down to ``final``; factors of the peak learning rate."""

    warmup_steps: int
    total_steps: int
    final: float = 0.0

    def __call__(self, step: int) -> float:
        """Return the factor for the update that follows ``step`` updates."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        rest = max(self.total_steps - self.warmup_steps, 1)
        return anneal("cosine", 1.0, self.final, (step - self.warmup_steps) / rest)


@dataclass(frozen=True)
class KeepCounts:
    """Tokens to keep at each stage, from all of them down to the target ratios.

    Attributes:
        count: the model's rule, from a number of patches and ratios to counts.
        moves: how often they change during the warm-up, where each change costs a compilation; None: at every step.
    """

    num_patches: int
    keep_ratios: Sequence[float]
    warmup_steps: int = 0
    count: Callable[[int, Sequence[float]], list[int]] = stage_counts
    moves: int | None = None

    def __call__(self, step: int) -> list[int]:
        """Return the counts at a step, warm-up included."""
        progress = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        if self.moves is not None:
            progress = math.floor(progress * self.moves) / self.moves
        return self.count(self.num_patches, [1 + (ratio - 1) * progress for ratio in self.keep_ratios])
