"""The least that can be learned of tokens alone."""

from __future__ import annotations

from torch import Tensor, nn

from dynavit.functional import linear_logits
from dynavit.scorers.base import Scorer, StageView, register_scorer


@register_scorer
class LinearScorer(Scorer):
    """Score each patch token by itself: LayerNorm and one linear layer.

    The least that can be learned, to compare a predictor with.

    Args:
        dim: token width D.
        initial_logit: as in :class:`~dynavit.scorers.predictor.ScorePredictor`.
    """

    name = "linear"
    learned = True

    def __init__(self, dim: int, initial_logit: float = 2.0) -> None:
        super().__init__()
        self.initial_logit = initial_logit
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Linear(dim, 1)
        nn.init.constant_(self.score.bias, initial_logit)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        return linear_logits(self.score, self.norm(tokens))

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        return n * dim
