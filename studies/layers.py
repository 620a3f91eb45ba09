"""A small Vision Transformer on ready-made tokens, small enough to train many of in minutes.

Shapes: B images, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Pool = Callable[[Tensor, Tensor], Tensor]
"""Tokens ``(B, N, D)`` and mask ``(B, N)`` to ``(B, D)``."""


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, dim: int, heads: int = 4, mlp_ratio: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``(B, N, D)``; ``bias`` is added to the attention logits ``(B, heads, N, N)``."""
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        logits = q @ k.mT * (d // self.heads) ** -0.5
        weights = (logits if bias is None else logits + bias).softmax(dim=-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Token embedding, class token, positions, blocks, norm."""

    DIM = 64

    def __init__(self, token_dim: int, num_tokens: int, dim: int = DIM, depth: int = 3) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Linear(token_dim, dim)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, num_tokens + 1, dim))
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return what the first block receives, ``(B, 1 + N, D)``."""
        x = self.embedding(tokens)
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the normalised class and patch tokens, ``(B, 1 + N, D)``."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def batch_hard_triplet(features: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """Triplet loss with the hardest positive and negative of the batch, on features as they are.

    Hermans et al. 2017, https://arxiv.org/abs/1703.07737, eq. 5. Unnormalised features leave it
    unbounded, as in the re-identification models whose training exploded.
    """
    squared = (features[:, None] - features[None]).square().sum(dim=-1)
    distance = squared.clamp(min=1e-12).sqrt()
    same = labels[:, None] == labels[None]
    positive = distance.masked_fill(~same, 0.0).amax(dim=1)
    negative = distance.masked_fill(same, float("inf")).amin(dim=1)
    return functional.relu(positive - negative + margin).mean()
