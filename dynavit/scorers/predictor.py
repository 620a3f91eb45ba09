"""The learned scorer of DynamicViT, which looks at the tokens alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynavit.functional import linear_logits, masked_mean
from dynavit.scorers.base import Scorer, StageView, register_scorer


@register_scorer
class ScorePredictor(Scorer):
    """Score each patch token by itself and by the mean of the tokens still alive.

    DynamicViT, Rao et al. 2021, https://arxiv.org/abs/2106.02034, eq. 1-4, with one raw logit a
    token where the paper emits two log-probabilities: ``P(keep) = sigmoid(logit)``.

    Args:
        dim: token width D, a multiple of 4.
        initial_logit: bias of the last layer. Selectors with an expected count start near the dense
            model when it is clearly above 0; top-k selectors do not notice it.
    """

    name = "mlp"
    learned = True

    def __init__(self, dim: int, initial_logit: float = 2.0) -> None:
        super().__init__()
        self.initial_logit = initial_logit
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 1),
        )
        last = self.score[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, initial_logit)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        x = self.embed(tokens)
        local, rest = x.chunk(2, dim=-1)
        context = rest.mean(dim=1) if mask is None else masked_mean(rest, mask)
        x = torch.cat([local, context.unsqueeze(1).expand_as(local)], dim=-1)
        *hidden, last = self.score
        for layer in hidden:
            x = layer(x)
        return linear_logits(last, x)

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        half, quarter = dim // 2, dim // 4
        return n * (dim * dim + dim * half + half * quarter + quarter)
