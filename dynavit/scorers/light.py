"""A learned scorer that costs next to nothing."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dynavit.errors import InputError
from dynavit.functional import linear_logits, masked_mean
from dynavit.scorers.base import Scorer, StageView, register_scorer


@register_scorer
class LightPredictor(Scorer):
    """Score each patch token by a narrow layer, and by its mean over the tokens still alive.

    Of :class:`~dynavit.scorers.predictor.ScorePredictor` it keeps what decides, each token beside the mean of all, at
    an eleventh of its cost: about ``D^2 / 8`` multiply-accumulates a token. The mean enters before the nonlinearity,
    where it can change the order of the tokens.

    Args:
        dim: token width D.
        reduction: the layer is narrower than the tokens by this factor.
        initial_logit: as in :class:`~dynavit.scorers.predictor.ScorePredictor`.

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
        return linear_logits(self.score, F.gelu(x + self.context(mean).unsqueeze(1)))

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        width = dim // self.reduction
        return n * (dim + 1) * width + width * width
