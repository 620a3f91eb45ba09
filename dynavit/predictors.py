"""The network that scores tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScorePredictor(nn.Module):
    """Score each patch token by itself and by the mean of the tokens still alive.

    DynamicViT, Rao et al. 2021, https://arxiv.org/abs/2106.02034, eq. 1-4, with one raw logit a
    token where the paper emits two log-probabilities: ``P(keep) = sigmoid(logit)``.

    Args:
        dim: token width D, a multiple of 4.
        initial_logit: bias of the last layer. Selectors with an expected count start near the dense
            model when it is clearly above 0; top-k selectors do not notice it.
    """

    def __init__(self, dim: int, initial_logit: float = 2.0) -> None:
        super().__init__()
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

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits ``(B, N)`` for tokens ``(B, N, D)``.

        Args:
            tokens: patch tokens.
            mask: ``(B, N)`` in [0, 1], how much of each token is still there; None means all.
        """
        x = self.embed(tokens)
        local, rest = x.chunk(2, dim=-1)
        if mask is None:
            context = rest.mean(dim=1, keepdim=True)
        else:
            weight = mask.unsqueeze(-1).to(rest.dtype)
            # at least 1: an image that lost every token must not divide by nearly nothing
            context = (rest * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        x = torch.cat([local, context.expand_as(local)], dim=-1)
        return self.score(x).squeeze(-1)
