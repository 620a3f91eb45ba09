"""T8: the perturbed top-k has the whole Jacobian of the smoothed top-k; its diagonal is another thing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dynavit
from dynavit.selectors import create_selector
from dynavit.selectors.functional import hard_topk
from dynavit.selectors.perturbed import PerturbedTopK

SCORES = torch.tensor([0.4, 0.0, -0.3])
SIGMA = 0.5
# by quadrature: N = 3, k = 1, sigma = 0.5
JACOBIAN = torch.tensor([[0.5653, -0.3812, -0.1841], [-0.3812, 0.4764, -0.0952], [-0.1841, -0.0952, 0.2792]])
ROWS, SAMPLES = 4_000, 100


def estimate(weights: Tensor, seed: int = 0) -> Tensor:
    """Vector-Jacobian products ``(rows, 3)`` of independent draws."""
    logits = SCORES.repeat(ROWS, 1).requires_grad_()
    selector = PerturbedTopK(sigma=SIGMA, samples=SAMPLES).train()
    alive = torch.ones(ROWS, 3, dtype=torch.bool)
    mask = selector(logits, alive, 1, 1.0, torch.Generator().manual_seed(seed)).mask
    (gradient,) = torch.autograd.grad((mask * weights).sum(), logits)
    return gradient


def diagonal(weights: Tensor, seed: int = 0) -> Tensor:
    """The widely copied backward: ``einsum('bnkd,bnd->bkd')``, which keeps the diagonal alone."""
    noise = torch.randn(SAMPLES, ROWS, 3, generator=torch.Generator().manual_seed(seed))
    noisy = (SCORES + SIGMA * noise).flatten(0, 1)
    choices = hard_topk(noisy, torch.ones_like(noisy, dtype=torch.bool), 1).reshape(noise.shape).float()
    return (choices * noise).mean(dim=0) / SIGMA * weights


def z_scores(draws: Tensor, expected: Tensor) -> Tensor:
    return (draws.mean(dim=0) - expected) / (draws.std(dim=0) / ROWS**0.5)


def test_the_gradient_is_the_product_with_the_whole_jacobian() -> None:
    for row in range(3):
        weights = torch.eye(3)[row]
        found = estimate(weights, seed=row).mean(dim=0)
        torch.testing.assert_close(found, JACOBIAN[row], atol=6e-3, rtol=0)
    weights = torch.tensor([1.0, 2.0, -1.5])
    assert (z_scores(estimate(weights), weights @ JACOBIAN).abs() < 5).all()


def test_the_copied_diagonal_is_refused_by_the_same_numbers() -> None:
    weights = torch.tensor([1.0, 2.0, -1.5])
    wrong = diagonal(weights)
    assert (z_scores(wrong, weights @ JACOBIAN).abs() > 20).any()
    # a shift of all scores changes nothing, so the true product sums to 0; the diagonal's does not
    assert abs(float(estimate(weights).mean(dim=0).sum())) < 0.02
    assert abs(float(wrong.mean(dim=0).sum())) > 1


def test_the_greedy_choice_as_a_baseline_removes_variance() -> None:
    weights = torch.tensor([1.0, 2.0, -1.5])
    noise = torch.randn(SAMPLES, ROWS, 3, generator=torch.Generator().manual_seed(5))
    choices = hard_topk((SCORES + 0.1 * noise).flatten(0, 1), torch.ones(SAMPLES * ROWS, 3, dtype=torch.bool), 1)
    plain = torch.einsum("bi,sbi->sb", weights.expand(ROWS, 3), choices.reshape(noise.shape).float())
    without = torch.einsum("sb,sbj->bj", plain, noise) / (SAMPLES * 0.1)
    logits = SCORES.repeat(ROWS, 1).requires_grad_()
    selector = PerturbedTopK(sigma=0.1, samples=SAMPLES).train()
    mask = selector(logits, torch.ones(ROWS, 3, dtype=torch.bool), 1, 1.0, torch.Generator().manual_seed(5)).mask
    (gradient,) = torch.autograd.grad((mask * weights).sum(), logits)
    assert gradient.var(dim=0).sum() < 0.1 * without.var(dim=0).sum()


def test_masks_are_shares_of_the_samples_and_temperature_scales_the_noise() -> None:
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    alive = torch.ones(5, 9, dtype=torch.bool)
    alive[:, 3] = False
    k = torch.tensor([1, 2, 3, 4, 8])
    selector = PerturbedTopK(samples=8).train()
    mask = selector(logits, alive, k, 1.0, torch.Generator().manual_seed(1)).mask
    torch.testing.assert_close(mask * 8, (mask * 8).round())
    torch.testing.assert_close(mask.sum(dim=1), k.float())
    cold = selector(logits, alive, k, 1e-6, torch.Generator().manual_seed(1)).mask
    assert torch.equal(cold, hard_topk(logits, alive, k).float())
    assert torch.equal(
        PerturbedTopK(sigma=1.0, samples=8).train()(logits, alive, 3, 0.5, torch.Generator().manual_seed(1)).mask,
        PerturbedTopK(sigma=0.5, samples=8).train()(logits, alive, 3, 1.0, torch.Generator().manual_seed(1)).mask,
    )


@pytest.mark.parametrize("options", [{"sigma": 0}, {"samples": 0}, {"sigma": -1.0}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(dynavit.InputError, match="must be above 0"):
        create_selector("perturbed_topk", **options)
