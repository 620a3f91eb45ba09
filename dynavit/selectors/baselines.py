"""Selectors that do not learn: a random choice to compare with, and a replay of given decisions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.selectors.base import Selector
from dynavit.selectors.functional import hard_topk, random_rank
from dynavit.selectors.registry import register_selector
from dynavit.selectors.selection import Selection, SelectionRequest


class _NotLearned(Selector):
    """Ignores the logits; chooses alike in training and in eval."""

    trains_predictor = False
    needs_scores = False

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        return self.decide(logits, request.alive, request.count)


@register_selector("random")
class Random(_NotLearned):
    """A random choice, the same for every image: one permutation per (seed, stage). A baseline."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def at(self, stage: int, positions: Tensor) -> Selector:
        return _Ranked(random_rank(positions, self.seed, stage))

    def decide(self, logits: Tensor, alive: Tensor, k: int | Tensor) -> Selection:
        return self.at(0, _in_order(logits)).decide(logits, alive, k)

    def order(self, logits: Tensor, k: int) -> Tensor:
        return self.at(0, _in_order(logits)).order(logits, k)


class _Ranked(_NotLearned):
    """Keeps the k best of a given ranking ``(B, n)``."""

    def __init__(self, rank: Tensor) -> None:
        super().__init__()
        self.rank = rank

    def decide(self, logits: Tensor, alive: Tensor, k: int | Tensor) -> Selection:
        keep = hard_topk(self.rank, alive, k)
        chosen = keep.to(logits.dtype)
        return Selection(keep, chosen, chosen)

    def order(self, logits: Tensor, k: int) -> Tensor:
        return self.rank.argsort(dim=1, descending=True)


@register_selector("fixed")
class Fixed(_NotLearned):
    """Replays given decisions: one ``(B, N)`` tensor a stage, over the original patches.

    For tests and comparisons. While training the decisions are used as they are (floats may carry a
    gradient, counts may differ between images); in eval each row must keep exactly k tokens. Tokens that
    a reducer made of several patches are not kept.

    Raises:
        InputError: fewer decisions than stages, another shape, or in eval another count than k.
    """

    budget = "expected"

    def __init__(self, decisions: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.decisions = list(decisions)

    def at(self, stage: int, positions: Tensor) -> Selector:
        if stage >= len(self.decisions):
            raise InputError(
                f"selector 'fixed' holds decisions for {len(self.decisions)} stages, but stage "
                f"{stage} was reached; pass Fixed(decisions=[...]) with one tensor a stage."
            )
        decision = self.decisions[stage].to(positions.device)
        if decision.shape[0] != positions.shape[0] or int(positions.max()) >= decision.shape[1]:
            raise InputError(
                f"selector 'fixed': the decisions of stage {stage} have shape "
                f"{tuple(decision.shape)}, which does not cover a batch of {positions.shape[0]}."
            )
        decisions = decision.gather(1, positions.clamp(min=0)) * (positions >= 0)
        return _Replayed(decisions).train(self.training)

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        return self.at(0, _in_order(logits)).sample(logits, request)

    def decide(self, logits: Tensor, alive: Tensor, k: int | Tensor) -> Selection:
        return self.at(0, _in_order(logits)).decide(logits, alive, k)

    def order(self, logits: Tensor, k: int) -> Tensor:
        return self.at(0, _in_order(logits)).order(logits, k)


class _Replayed(_NotLearned):
    """Replays the decision ``(B, n)`` of one stage."""

    budget = "expected"

    def __init__(self, decision: Tensor) -> None:
        super().__init__()
        self.decision = decision

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        keep = (self.decision > 0.5) & request.alive
        # as given, dead tokens included: the running product of masks silences those
        mask = self.decision.to(logits.dtype)
        return Selection(keep, mask, keep.to(logits.dtype))

    def decide(self, logits: Tensor, alive: Tensor, k: int | Tensor) -> Selection:
        keep = (self.decision > 0.5) & alive
        counts = keep.sum(dim=1)
        if not bool((counts == torch.as_tensor(k, device=counts.device)).all()):
            raise InputError(
                f"selector 'fixed': the decisions keep {counts.tolist()} tokens but the keep ratio "
                f"asks for {k}; set the model's keep ratios to match the decisions."
            )
        chosen = keep.to(logits.dtype)
        return Selection(keep, chosen, chosen)

    def order(self, logits: Tensor, k: int) -> Tensor:
        keep = self.decide(logits, torch.ones_like(logits, dtype=torch.bool), k).keep
        return keep.int().argsort(dim=1, descending=True, stable=True)


def _in_order(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[1], device=logits.device).expand(logits.shape)
