"""What happens at a stage that merges: the most similar tokens become one each.

Shapes: B batch, n tokens present beside the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dynavit.adapters import BackboneAdapter
from dynavit.adapters.attention import normalises_keys
from dynavit.errors import InputError
from dynavit.models.gathered import GatheredTokens
from dynavit.models.steps import ForwardRequest, Step
from dynavit.models.tokens import Tokens
from dynavit.reducers import Merge


@dataclass(frozen=True, eq=False)
class MergeStep(Step):
    """Merges the most similar tokens, by the keys of the block; nothing is scored.

    Attributes:
        merge: how.
    """

    merge: Merge

    def __call__(self, tokens: Tokens, request: ForwardRequest) -> None:
        """Merge tokens until their count is left.

        Raises:
            InputError: images are to keep different numbers of tokens.
        """
        k = request.counts[self.stage]
        if isinstance(tokens.num_patches, Tensor):
            raise InputError("reducer 'merge' needs images of one size: it leaves as many tokens in each.")
        if isinstance(k, Tensor) and k.numel() != 1:
            raise InputError(
                "reducer 'merge' leaves as many tokens in every image: give one number of keep_counts a stage."
            )
        assert isinstance(tokens, GatheredTokens)
        if k < tokens.positions.shape[1]:
            keys = tokens.view(self.block).mean_keys()
            tokens.merge(self.merge, keys[:, tokens.adapter.num_prefix_tokens :], int(k))

    def macs(self, n: int, k: int, adapter: BackboneAdapter) -> tuple[int, int]:
        """Return the multiply-accumulates, for one image, of comparing n tokens and merging them to k; and 0."""
        if k >= n:
            return 0, 0
        attention = adapter.backbone.blocks[self.block].attn
        dim, width = attention.proj.out_features, attention.proj.in_features
        metric_dim = width // attention.num_heads
        keys = (adapter.num_prefix_tokens + n) * dim * (width if normalises_keys(attention) else metric_dim)
        return keys + self.merge.macs(k, n - k, dim, metric_dim), 0

    def leaves(self, n: int, k: int) -> int:
        """Return how many tokens there are after n were merged to k."""
        return k
