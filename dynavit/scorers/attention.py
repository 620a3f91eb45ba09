"""Scorers that read the attention of the block of their stage; nothing to learn.

All take logarithms, so that ``exp(logit)`` is the published score; the order is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.functional import full_precision
from dynavit.scorers.base import BlockAttention, Scorer, StageView, register_scorer


@register_scorer
class ClassAttention(Scorer):
    """How much the class token attends to each token, mean over the heads.

    EViT, Liang et al. 2022, https://arxiv.org/abs/2202.07800, sec. 3.2 and 3.3.
    """

    name = "class_attention"
    needs_attention = True
    needs_class_token = True

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        attention = block_attention(self, view)
        return _log(attention.class_attention().mean(dim=1)[:, attention.num_prefix_tokens :])

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        length = num_prefix + n
        if folds:  # one query, turned through the key projection, and its products with the tokens
            return 2 * dim * dim + num_heads * length * dim
        return dim * dim + length * dim * dim + length * dim  # one query, all keys, their products


@register_scorer
class MeanAttention(ClassAttention):
    """How much the mean of the patches attends to each token, mean over the heads.

    What the class token is asked for where there is none, at the same cost: the mean of the tokens still there is
    normalised as the block's input is and stands at no place, as a class token does. Without QK-norm and rotation its
    query is the mean of all queries.
    """

    name = "mean_attention"
    needs_class_token = False

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        attention = block_attention(self, view)
        return _log(attention.mean_attention(mask).mean(dim=1)[:, attention.num_prefix_tokens :])


@register_scorer
class QueryAttention(MeanAttention):
    """``class_attention`` where there is a class token, and ``mean_attention`` where there is none."""

    name = "attention"

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        read = ClassAttention if block_attention(self, view).has_class_token else MeanAttention
        return read.forward(self, tokens, mask, view)


@register_scorer
class LatentAttention(Scorer):
    """How much the latent query of the pooling head would attend to each token if it pooled now, mean over the heads.

    What the class token is asked for where the head pools by attention, as in SigLIP (Zhai et al. 2023,
    https://arxiv.org/abs/2303.15343): the head's own attention, to the tokens as they enter the block, after the last
    norm of the model. The query is the same for all images, so that one row for each head is all there is to make.
    """

    name = "latent_attention"
    needs_attention = True
    needs_latent = True

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        attention = block_attention(self, view)
        return _log(attention.latent_attention().mean(dim=1)[:, attention.num_prefix_tokens :])

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        # the query, turned through the key projection, is made once for all images of a batch
        return 2 * dim * dim + num_heads * (num_prefix + n) * dim


@register_scorer
class ValueAttention(ClassAttention):
    """How much the class token takes from each token: its attention times the norm of the token's value.

    ATS, Fayyaz et al. 2022, https://arxiv.org/abs/2111.15667, eq. 3, as its published code does: attention over the
    heads, times the norm of the values of all heads together. The division by the sum over the tokens, the same for
    all, is left out.
    """

    name = "value_attention"

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        attention = block_attention(self, view)
        values = full_precision(attention.values()[:, :, attention.num_prefix_tokens :])
        return super().forward(tokens, mask, view) + _log(torch.linalg.vector_norm(values, dim=(1, 3)))

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        return super().macs(n, num_prefix, num_heads, dim, folds) + (num_prefix + n) * dim * dim


@register_scorer
class AttentionReceived(Scorer):
    """How much attention each token receives, mean over the heads and over the tokens still there.

    The prune score of LTMP, Bonnaerens and Dambre 2023, https://arxiv.org/abs/2307.10780, sec. 3.2, and before it of
    LTP, Kim et al. 2022, https://arxiv.org/abs/2107.00910. Prefix tokens count among those that attend, so models
    without a class token have it too. It costs as much as the block's attention.
    """

    name = "attention_received"
    needs_attention = True

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        attention = block_attention(self, view)
        num_prefix = attention.num_prefix_tokens
        received = attention.attention().mean(dim=1)
        if mask is not None:
            asking = torch.cat([mask.new_ones(mask.shape[0], num_prefix), mask], dim=1).to(received.dtype)
            received = received * (asking / asking.sum(dim=1, keepdim=True).clamp(min=1)).unsqueeze(-1)
            return _log(received.sum(dim=1)[:, num_prefix:])
        return _log(received.mean(dim=1)[:, num_prefix:])

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        length = num_prefix + n
        return 2 * length * dim * dim + length * length * dim


def block_attention(scorer: Scorer, view: StageView | None) -> BlockAttention:
    """Return the attention that a scorer reads.

    Raises:
        InputError: there is none.
    """
    if view is None or view.attention is None:
        raise InputError(
            f"scorer {scorer.name!r} reads the attention of the block of its stage: call it with "
            f"view=StageView(stage, positions, attention)."
        )
    return view.attention


def _log(score: Tensor) -> Tensor:
    """Return the logarithm, finite also of a hidden token's 0."""
    return score.clamp(min=torch.finfo(score.dtype).tiny).log()
