"""A random order, to compare with."""

from __future__ import annotations

from torch import Tensor

from dynavit.errors import InputError
from dynavit.scorers.base import Scorer, StageView, register_scorer
from dynavit.selectors.functional import random_rank


@register_scorer
class RandomScorer(Scorer):
    """A random order, the same for every image: one permutation per (seed, stage). A baseline.

    Top-k of it keeps what the selector ``random`` of the same seed keeps. The logits, from -1 to below 1, depend on
    the original position alone; made tokens are at -1 and have one too.
    """

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        if view is None:
            raise InputError(
                "scorer 'random' needs view=StageView(stage, positions): its order is by original position."
            )
        return random_rank(view.positions, self.seed, view.stage) / 2**23 - 1

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        return 0
