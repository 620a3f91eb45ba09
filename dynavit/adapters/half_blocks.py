"""The two halves of a pre-norm block, made of timm's own modules: what every block here does in its forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def add_attention(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """Add what ``block.attn`` made of ``block.norm1(x)`` to ``x``, with layer scale and drop path."""
    return x + block.drop_path1(_scaled(block, 1, attended))


def add_mlp(block: Any, x: Tensor) -> Tensor:
    """Add what the MLP makes of ``x`` to it, with layer scale and drop path."""
    return x + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(x))))


def _scaled(block: Any, half: int, x: Tensor) -> Tensor:
    """Apply layer scale: a module in ViT's blocks, a parameter or None in those of Eva and Beit."""
    if hasattr(block, f"ls{half}"):
        return getattr(block, f"ls{half}")(x)
    gamma = getattr(block, f"gamma_{half}")
    return x if gamma is None else gamma * x
