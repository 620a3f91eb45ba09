"""The norm of the keys: a guess at attention that needs no query."""

from __future__ import annotations

import torch
from torch import Tensor

from dynavit.functional import full_precision
from dynavit.scorers.attention import block_attention
from dynavit.scorers.base import Scorer, StageView, register_scorer


@register_scorer
class KeyNorm(Scorer):
    """The norm of each token's key, mean over the heads: the shortest keys count most, or the longest.

    Which of the two depends on the model; try both against ``random``. Short keys drew the most attention in the
    language decoders of Devoto et al. 2024, https://arxiv.org/abs/2406.11430, and do in this project's quickstart
    model: 16 of 64 patches, kept before block 2 by the shortest keys, leave an accuracy of 0.91, by chance 0.77, by
    the longest 0.07 (dense 0.99). In a ViT-S/14 of DINOv2's layout, fine-tuned for saliency, it is the other way
    round: half of the patches, kept before block 6 by the longest keys, leave the class token's feature at a cosine
    of 0.97 to the dense one, by chance 0.96, by the shortest 0.84. After QK-norm all keys are about equally long.

    Args:
        longest: keep long keys instead of short ones.
    """

    name = "key_norm"
    needs_attention = True

    def __init__(self, longest: bool = False) -> None:
        super().__init__()
        self.longest = longest

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        attention = block_attention(self, view)
        keys = full_precision(attention.keys()[:, :, attention.num_prefix_tokens :])
        norm = torch.linalg.vector_norm(keys, dim=-1).mean(dim=1)
        return norm if self.longest else -norm

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        return (num_prefix + n) * dim * dim
