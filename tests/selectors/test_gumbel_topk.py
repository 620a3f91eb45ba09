"""T5: Gumbel top-k samples Plackett-Luce sets exactly; with the wrong noise it does not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor

from dynavit.selectors import create_selector
from dynavit.selectors.functional import hard_topk, logistic_noise

PHI = torch.tensor([0.5, -1.0, 1.2, 0.0, 0.3])
DRAWS = 200_000
SETS = list(combinations(range(5), 2))


def exact() -> Tensor:
    """P(set) as the sum over the orders in which its members can be drawn."""
    weight = PHI.double().exp()

    def ordered(order: tuple[int, ...]) -> float:
        left, probability = weight.sum(), torch.tensor(1.0, dtype=torch.float64)
        for item in order:
            probability, left = probability * weight[item] / left, left - weight[item]
        return float(probability)

    return torch.tensor([sum(ordered(order) for order in permutations(members)) for members in SETS])


def chi_square(keep: Tensor) -> float:
    counts = torch.stack([keep[:, list(members)].all(dim=1).sum() for members in SETS]).double()
    assert int(counts.sum()) == DRAWS
    expected = exact().double() * DRAWS
    return float(((counts - expected) ** 2 / expected).sum())


def sample() -> Tensor:
    logits = PHI.expand(DRAWS, 5)
    selector = create_selector("gumbel_topk").train()
    generator = torch.Generator().manual_seed(0)
    return selector(logits, torch.ones(DRAWS, 5, dtype=torch.bool), 2, 1.0, generator).keep


def test_samples_follow_plackett_luce() -> None:
    keep = sample()
    assert chi_square(keep) < 16.9  # the 5 % point with 9 degrees of freedom
    inclusion = keep.double().mean(dim=0)
    expected = torch.tensor([0.4661, 0.1147, 0.7282, 0.2988, 0.3922], dtype=torch.float64)
    torch.testing.assert_close(inclusion, expected, atol=5e-3, rtol=0)
    assert float(inclusion.sum()) == pytest.approx(2)
    # the same numbers from the enumeration
    enumerated = torch.zeros(5)
    for members, probability in zip(SETS, exact(), strict=True):
        enumerated[list(members)] += probability
    torch.testing.assert_close(enumerated.double(), expected, atol=1e-4, rtol=0)


def gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


@pytest.mark.parametrize("noise", [logistic_noise, gaussian])
def test_other_noise_does_not(noise: Callable[[Tensor, torch.Generator], Tensor]) -> None:
    """The negative control: logistic noise belongs to gates, Gumbel noise to top-k."""
    logits = PHI.expand(DRAWS, 5)
    noisy = logits + noise(logits, torch.Generator().manual_seed(0))
    assert chi_square(hard_topk(noisy, torch.ones_like(noisy, dtype=torch.bool), 2)) > 1000


def test_dead_tokens_leave_the_others_their_odds() -> None:
    """With one token dead the sets are those of a race among the others."""
    alive = torch.ones(DRAWS, 5, dtype=torch.bool)
    alive[:, 2] = False
    selector = create_selector("gumbel_topk").train()
    keep = selector(PHI.expand(DRAWS, 5), alive, 1, 1.0, torch.Generator().manual_seed(1)).keep
    others = PHI.masked_fill(~alive[0], -1e9).softmax(dim=0)
    torch.testing.assert_close(keep.float().mean(dim=0), others, atol=5e-3, rtol=0)


def test_the_gradient_uses_the_noise_of_the_decision() -> None:
    """Straight-through on the same sample: a relaxation of other noise would contradict the forward."""
    logits = (PHI.repeat(400, 1)).requires_grad_()
    alive = torch.ones(400, 5, dtype=torch.bool)
    selection = create_selector("gumbel_topk").train()(logits, alive, 2, 0.05, torch.Generator().manual_seed(2))
    # at a low temperature the relaxation of the same noise is almost the decision itself
    agreement = ((selection.probs > 0.5) == selection.keep).float().mean()
    assert agreement > 0.98
    other = create_selector("gumbel_topk").train()(logits, alive, 2, 0.05, torch.Generator().manual_seed(3))
    assert ((other.probs > 0.5) == selection.keep).float().mean() < 0.8
