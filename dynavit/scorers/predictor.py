"""Learned scorers, which look at the tokens alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynavit.errors import InputError
from dynavit.functional import full_precision, masked_mean
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
        return _logits(last, x)

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        half, quarter = dim // 2, dim // 4
        return n * (dim * dim + dim * half + half * quarter + quarter)


@register_scorer
class LinearScorer(Scorer):
    """Score each patch token by itself: LayerNorm and one linear layer.

    The least that can be learned, to compare a predictor with.

    Args:
        dim: token width D.
        initial_logit: as in :class:`ScorePredictor`.
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
        return _logits(self.score, self.norm(tokens))

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        return n * dim


@register_scorer
class LightPredictor(Scorer):
    """Score each patch token by a narrow layer, and by its mean over the tokens still alive.

    Of :class:`ScorePredictor` it keeps what decides, each token beside the mean of all, at a thirteenth of its cost:
    about ``D^2 / 8`` multiply-accumulates a token. The mean enters before the nonlinearity, where it can change the
    order of the tokens.

    Args:
        dim: token width D.
        reduction: the layer is narrower than the tokens by this factor.
        initial_logit: as in :class:`ScorePredictor`.

    Raises:
        InputError: ``reduction`` is no whole number from 1 to D.
    """

    name = "light"
    learned = True

    def __init__(self, dim: int, reduction: int = 8, initial_logit: float = 2.0) -> None:
        super().__init__()
        if not isinstance(reduction, int) or isinstance(reduction, bool) or not 1 <= reduction <= dim:
            raise InputError(f"reduction={reduction!r}: a whole number from 1 to the width of the tokens, {dim}.")
        self.reduction, self.initial_logit = reduction, initial_logit
        width = dim // reduction
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.context = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1)
        nn.init.constant_(self.score.bias, initial_logit)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        x = self.embed(tokens)
        mean = x.mean(dim=1) if mask is None else masked_mean(x, mask)
        return _logits(self.score, F.gelu(x + self.context(mean).unsqueeze(1)))

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        width = dim // self.reduction
        return n * (dim + 1) * width + width * width


def _logits(last: nn.Module, x: Tensor) -> Tensor:
    """Apply the last layer in fp32, and add its bias after: half precision has few numbers near a large bias.

    In bf16 a score near 2 has a step of 1/64, more than what most scores differ by.
    """
    assert isinstance(last, nn.Linear)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(full_precision(x), full_precision(last.weight)).squeeze(-1) + full_precision(last.bias)
