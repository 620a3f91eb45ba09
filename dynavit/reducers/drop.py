"""Dropping: what is not kept is gone."""

from __future__ import annotations

from dynavit.reducers.base import Reduced, Reducer, TokenSet


class Drop(Reducer):
    """Remove the tokens that are not kept (DynamicViT, https://arxiv.org/abs/2106.02034)."""

    name = "drop"
    reads_dropped = False

    def forward(self, kept: TokenSet, dropped: TokenSet | None = None) -> Reduced:
        return Reduced(kept.tokens)
