"""The contract test for authors: it passes what keeps the promises, and names each one that is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dynavit.selectors import (
    Selection,
    SelectionRequest,
    Selector,
    TopK,
    check_selector,
    create_selector,
    list_selectors,
)
from dynavit.selectors.functional import hard_topk, soft_topk, straight_through


@pytest.mark.parametrize("name", [name for name in list_selectors() if name != "fixed"])
@pytest.mark.parametrize("training", [True, False])
def test_our_own_pass(name: str, training: bool) -> None:
    selector = create_selector(name).train(training)
    check_selector(selector)
    assert selector.training == training


class Resurrects(TopK):
    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        return super().sample(logits, replace(request, alive=torch.ones_like(request.alive)))


class IdentityMask(TopK):
    """Soft where it says hard: eval would differ."""

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        soft = soft_topk(logits, request.alive, request.count, request.temperature)
        return Selection(hard_topk(logits, request.alive, request.count), soft, soft)


class Overflows(TopK):
    """exp(60) overflows in half precision, and in sums of squares in single precision."""

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        selection = super().sample(logits, request)
        share = logits.exp().square() / logits.exp().square().sum(dim=1, keepdim=True)
        return Selection(
            selection.keep, straight_through(selection.mask.detach(), share * request.alive), selection.probs
        )


class NoisyEval(TopK):
    def decide(self, logits: Tensor, alive: Tensor, k) -> Selection:
        return super().decide(logits + torch.rand_like(logits), alive, k)


class Counts(TopK):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        self.calls += 1
        return super().sample(logits, request)


class SaysItLearns(TopK):
    def __init__(self) -> None:
        super().__init__(gradient="none")
        self.trains_scorer = True


class PrefersTheLeft(TopK):
    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        place = torch.linspace(9, 0, logits.shape[1])
        return super().sample(logits + place, request)


class DividesByNothing(TopK):
    """A share of the alive tokens: 0 / 0 where there is none."""

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        selection = super().sample(logits, request)
        gate = logits.sigmoid() * request.alive
        share = gate / gate.sum(dim=1, keepdim=True)
        return Selection(selection.keep, straight_through(selection.mask.detach(), share), selection.probs)


class TooMany(TopK):
    def decide(self, logits: Tensor, alive: Tensor, k) -> Selection:
        return super().decide(logits, alive, k + 1)


class AboveOne(TopK):
    soft = True

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        selection = super().sample(logits, request)
        return Selection(selection.keep, 1.4 * selection.mask, selection.probs)


@pytest.mark.parametrize(
    ("selector", "promise"),
    [
        (Resurrects, r"dropped tokens stay dropped: .*come back"),
        (IdentityMask, r"exactly 0 or 1: .*straight_through"),
        (Overflows, r"finite for logits of any precision: "),
        (NoisyEval, r"eval is deterministic: noise is drawn in eval"),
        (Counts, r"no state: a forward changes its attributes"),
        (SaysItLearns, r"learns as it says: .*trains_scorer = False"),
        (PrefersTheLeft, r"no preference for a place: .*depends on their place"),
        (DividesByNothing, r"an image without tokens: .*not finite"),
        (TooMany, r"k is met: .*not min\(k, alive\)"),
        (AboveOne, r"shapes and ranges: mask leaves \[0, 1\]"),
    ],
)
def test_broken_ones_are_caught_and_taught(selector: type[Selector], promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_selector(selector())
