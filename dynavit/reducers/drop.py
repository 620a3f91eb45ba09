"""Dropping: what is not kept is gone."""

from __future__ import annotations

from torch import Tensor

from dynavit.reducers.base import Reducer


class Drop(Reducer):
    """Remove the tokens that are not kept (DynamicViT, https://arxiv.org/abs/2106.02034)."""

    name = "drop"

    def forward(self, tokens: Tensor, index: Tensor) -> Tensor:
        return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
