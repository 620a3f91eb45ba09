"""The three places where the stability study puts a selection: after the backbone, in pooling, inside.

All three map tokens to an :class:`Outcome`, and name their parameters ``backbone`` and ``scorers``.

Shapes: B images, N tokens, D width, n tokens kept, C aggregated tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynavit.functional import log_mask, num_keep, take
from dynavit.losses import keep_ratio_loss
from dynavit.scorers import ScorePredictor
from dynavit.selectors import Selector
from dynavit.selectors.functional import hard_topk
from studies.identities import NUM_IDENTITIES, NUM_TOKENS, TOKEN_DIM
from studies.layers import Pool, VisionTransformer

Decide = Callable[[Tensor, int, torch.Generator | None], tuple[Tensor, Tensor]]
"""Scores, k, generator to ``keep`` and ``mask``, both ``(B, N)``."""
Weigh = Callable[[Tensor, Tensor], Tensor]
"""Logits ``(B, C, n)`` and the kept tokens' mask ``(B, n)`` to weights ``(B, C, n)``."""

BUDGET_WEIGHT = 2.0
POOLING_BUDGET_WEIGHT = 5.0


@dataclass
class Outcome:
    """Features and logits of each head; fraction of the tokens kept by each stage; the budget loss."""

    features: list[Tensor]
    logits: list[Tensor]
    kept: list[Tensor]
    budget: Tensor | None = None
    masks: list[Tensor] = field(default_factory=list)


def constant_topk(scores: Tensor, k: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Keep the k best; the mask is a constant, as in the modules that were stable."""
    keep = hard_topk(scores, torch.ones_like(scores, dtype=torch.bool), k)
    return keep, keep.to(scores.dtype)


class TokenSelection(nn.Module):
    """Token selection and aggregation after the backbone, as re-identification models have it.

    A predictor and the similarity to the class token score the tokens; the best half is aggregated
    to a few tokens by learned weights, and the rest to one; their mean is the second feature.
    LAPS (Fu et al. 2024), SEPS (https://arxiv.org/abs/2511.01390) and re-identification ports of them.

    Args:
        decide: scores to decision.
        weigh: how the decision's mask enters the aggregation weights.
        detach_scores: score detached tokens, so that the mask's gradient ends at the predictor.
    """

    KEEP_RATIO, AGGREGATED, SIMILARITY_WEIGHT = 0.5, 6, 0.25

    def __init__(self, decide: Decide, weigh: Weigh, detach_scores: bool = False) -> None:
        super().__init__()
        self.decide, self.weigh, self.detach_scores = decide, weigh, detach_scores
        self.backbone = VisionTransformer(TOKEN_DIM, NUM_TOKENS)
        dim = self.backbone.dim
        self.scorers: nn.Module = nn.Sequential(nn.Linear(dim, dim // 4), nn.GELU(), nn.Linear(dim // 4, 1))
        hidden = dim // 5
        self.aggregation = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, self.AGGREGATED)
        )
        self.heads = nn.ModuleList(nn.Linear(dim, NUM_IDENTITIES) for _ in range(2))

    def forward(self, tokens: Tensor, generator: torch.Generator | None = None) -> Outcome:
        x = self.backbone(tokens)
        class_token, patches = x[:, 0], x[:, 1:]
        scores = self.scores(class_token, patches)
        k = num_keep(NUM_TOKENS, self.KEEP_RATIO)
        decide = self.decide if self.training else constant_topk
        keep, mask = decide(scores, k, generator)
        aggregated, weights = self.aggregate(patches, scores, keep, mask)
        features = [class_token, aggregated]
        logits = [head(feature) for head, feature in zip(self.heads, features, strict=True)]
        return Outcome(features, logits, [keep.float().mean()], masks=[weights])

    def aggregate(self, patches: Tensor, scores: Tensor, keep: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean ``(B, D)`` of what patches are aggregated to, and the weights of those kept."""
        k = num_keep(NUM_TOKENS, self.KEEP_RATIO)
        index = torch.where(keep, torch.arange(NUM_TOKENS), NUM_TOKENS).topk(k, largest=False).indices
        kept = take(patches, index)
        weights = self.weigh(self.aggregation(kept).mT, mask.gather(1, index))
        rest = scores.masked_fill(keep, float("-inf")).softmax(dim=1).unsqueeze(1) @ patches
        return torch.cat([weights @ kept, rest], dim=1).mean(dim=1), weights

    def scores(self, class_token: Tensor, patches: Tensor) -> Tensor:
        """Return ``(B, N)``: the predictor's opinion mixed with the similarity to the class token."""
        if self.detach_scores:
            class_token, patches = class_token.detach(), patches.detach()
        similarity = functional.cosine_similarity(patches, class_token[:, None], dim=-1)
        low, high = similarity.amin(dim=1, keepdim=True), similarity.amax(dim=1, keepdim=True)
        similarity = (similarity - low) / (high - low + 1e-6)
        predicted = self.scorers(patches).squeeze(-1).sigmoid()
        return (1 - 2 * self.SIMILARITY_WEIGHT) * predicted + 2 * self.SIMILARITY_WEIGHT * similarity


class GatedPooling(nn.Module):
    """Binary gates decide which tokens are averaged to the second feature.

    Args:
        gate: a selector with an expected budget.
        pool: mean of the tokens by their mask.
        keep_ratio: what the budget loss asks for, and what training starts from. Of 32 tokens, 1/8
            leaves nothing in one image of 70, and more often once the gates disagree.
    """

    def __init__(self, gate: Selector, pool: Pool, keep_ratio: float = 0.125) -> None:
        super().__init__()
        self.gate, self.pool, self.keep_ratio = gate, pool, keep_ratio
        self.backbone = VisionTransformer(TOKEN_DIM, NUM_TOKENS)
        self.scorers = ScorePredictor(self.backbone.dim, math.log(keep_ratio / (1 - keep_ratio)))
        self.heads = nn.ModuleList(nn.Linear(self.backbone.dim, NUM_IDENTITIES) for _ in range(2))

    def forward(self, tokens: Tensor, generator: torch.Generator | None = None) -> Outcome:
        x = self.backbone(tokens)
        class_token, patches = x[:, 0], x[:, 1:]
        alive = torch.ones(patches.shape[:2], dtype=torch.bool)
        selection = self.gate(self.scorers(patches), alive, num_keep(NUM_TOKENS, self.keep_ratio), 1.0, generator)
        features = [class_token, self.pool(patches, selection.mask)]
        logits = [head(feature) for head, feature in zip(self.heads, features, strict=True)]
        budget = POOLING_BUDGET_WEIGHT * keep_ratio_loss([selection.probs.mean(dim=1)], [self.keep_ratio])
        return Outcome(features, logits, [selection.keep.float().mean()], budget, [selection.mask])


class PrunedInside(nn.Module):
    """Three pruning stages inside the backbone, as in DynamicViT, with the class token as feature.

    Args:
        gate: a selector with an expected budget; None prunes nothing.
        bias: the mask's additive attention bias.
        form: "key", one bias a key; "identity", in which a token always sees itself.
    """

    KEEP_RATIOS = (0.6, 0.36, 0.2)

    def __init__(
        self,
        gate: Selector | None,
        bias: Callable[[Tensor], Tensor] = log_mask,
        form: Literal["key", "identity"] = "key",
    ) -> None:
        super().__init__()
        self.gate, self.bias, self.form = gate, bias, form
        self.backbone = VisionTransformer(TOKEN_DIM, NUM_TOKENS, depth=1 + len(self.KEEP_RATIOS))
        self.scorers = nn.ModuleList(ScorePredictor(self.backbone.dim, initial_logit=1.0) for _ in self.KEEP_RATIOS)
        self.head = nn.Linear(self.backbone.dim, NUM_IDENTITIES)

    def forward(self, tokens: Tensor, generator: torch.Generator | None = None) -> Outcome:
        x = self.backbone.embed(tokens)
        mask = x.new_ones(x.shape[0], NUM_TOKENS)
        alive = mask.bool()
        kept: list[Tensor] = []
        expected: list[Tensor] = []
        for number, block in enumerate(self.backbone.blocks):
            if number and self.gate is not None:
                logits = self.scorers[number - 1](x[:, 1:], mask)
                k = num_keep(NUM_TOKENS, self.KEEP_RATIOS[number - 1])
                selection = self.gate(logits, alive, k, 1.0, generator)
                mask, alive = mask * selection.mask, alive & selection.keep
                kept.append(alive.float().mean())
                expected.append(selection.probs.sum(dim=1) / NUM_TOKENS)
            x = block(x, None if not kept else self._attention_bias(mask))
        feature = self.backbone.norm(x)[:, 0]
        budget = BUDGET_WEIGHT * keep_ratio_loss(expected, self.KEEP_RATIOS) if expected else None
        return Outcome([feature], [self.head(feature)], kept or [torch.ones(())], budget, [mask])

    def _attention_bias(self, mask: Tensor) -> Tensor:
        keys = functional.pad(mask, (1, 0), value=1.0)[:, None, None, :]
        if not self.training:
            return torch.zeros_like(keys).masked_fill(keys < 0.5, float("-inf"))
        if self.form == "identity":
            keys = keys + (1 - keys) * torch.eye(keys.shape[-1])
        return self.bias(keys)
