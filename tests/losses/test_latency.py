"""Expected latency against enumeration of every subset, and the loss built on it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from dynavit import InputError
from dynavit.losses import expected_latency, keep_ratio_loss, latency_loss, poisson_binomial

STAIRS = torch.tensor([1.0, 1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 9.0, 9.0], dtype=torch.float64)  # of 0 to 8 tokens


def random_probs(batch: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def enumerated(probs: Tensor) -> Tensor:
    """Distribution of the count by summing the probability of all 2^N subsets."""
    tokens = probs.shape[1]
    subsets = torch.tensor(list(itertools.product([0.0, 1.0], repeat=tokens)), dtype=probs.dtype)
    probability = torch.where(subsets.bool(), probs[:, None], 1 - probs[:, None]).prod(dim=2)  # (B, 2^N)
    counts = torch.nn.functional.one_hot(subsets.sum(dim=1).long(), tokens + 1)
    return probability @ counts.to(probs.dtype)


@pytest.mark.parametrize("tokens", range(1, 11))
def test_equals_enumeration_of_all_subsets(tokens: int) -> None:
    probs = random_probs(3, tokens)
    torch.testing.assert_close(poisson_binomial(probs), enumerated(probs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 5, 8])
def test_gradient_equals_that_of_enumeration(tokens: int) -> None:
    probs = random_probs(3, tokens).requires_grad_()
    weight = torch.randn(3, tokens + 1, dtype=torch.float64)
    gradients = [torch.autograd.grad((f(probs) * weight).sum(), probs)[0] for f in (poisson_binomial, enumerated)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_certain_tokens_shift_the_count_and_have_a_gradient() -> None:
    """At 0 and 1 the gradient is still what one more token would change: nothing divides by p or 1 - p."""
    probs = torch.tensor([[0.0, 1.0, 1.0, 0.3, 0.0]], dtype=torch.float64, requires_grad=True)
    distribution = poisson_binomial(probs)
    torch.testing.assert_close(distribution.detach()[0], torch.tensor([0, 0, 0.7, 0.3, 0, 0]).double())
    gradients = [torch.autograd.grad(f(probs)[0, 3], probs)[0] for f in (poisson_binomial, enumerated)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)
    for certain in (0.0, 1.0):
        expected = torch.eye(6, dtype=torch.float64)[[int(5 * certain)]]
        assert torch.equal(poisson_binomial(torch.full((1, 5), certain, dtype=torch.float64)), expected)


def test_equal_probabilities_give_the_binomial_distribution() -> None:
    """At the size of a real model, in fp32: 196 tokens, also far from the mean."""
    n, p = 196, 0.7
    k = torch.arange(n + 1, dtype=torch.float64)
    choose = torch.lgamma(torch.tensor(n + 1.0).double()) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    exact = (choose + k * torch.tensor(p).double().log() + (n - k) * torch.tensor(1 - p).double().log()).exp()
    found = poisson_binomial(torch.full((1, n), p))[0].double()
    likely = exact > 1e-30
    assert likely.sum() > 120
    torch.testing.assert_close(found[likely], exact[likely], rtol=2e-5, atol=0)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert bool((found >= 0).all())


def test_half_precision_is_computed_in_fp32() -> None:
    probs = random_probs(2, 50).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = poisson_binomial(probs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), poisson_binomial(probs.double()), rtol=1e-5, atol=1e-7)


def test_a_straight_line_sees_only_the_expected_count() -> None:
    probs = random_probs(4, 8)
    line = 2 + 3 * torch.arange(9, dtype=torch.float64)
    torch.testing.assert_close(expected_latency(probs, line), 2 + 3 * probs.sum(dim=1))


@pytest.mark.parametrize("table", [torch.arange(9.0).double() ** 2, STAIRS], ids=["convex", "stairs"])
def test_expected_latency_is_not_the_latency_of_the_expected_count(table: Tensor) -> None:
    probs = torch.full((1, 8), 0.5, dtype=torch.float64)
    found = float(expected_latency(probs, table))
    assert found == pytest.approx(float(enumerated(probs)[0] @ table))
    assert abs(found - float(table[4])) > 0.9
    if table is not STAIRS:  # Jensen's gap of a square is the variance of the count
        assert found == pytest.approx(float(table[4]) + 8 / 4)


def test_the_flat_part_of_the_stairs_still_has_a_gradient() -> None:
    """Between two steps a token more or less costs nothing, but the risk of reaching the next step does."""
    probs = torch.tensor([[1.0, 1.0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.0]], dtype=torch.float64, requires_grad=True)
    assert STAIRS[2] == STAIRS[3]
    (gradient,) = torch.autograd.grad(expected_latency(probs, STAIRS).sum(), probs)
    assert bool((gradient > 0.1).all())


def test_loss_is_the_squared_miss_relative_to_dense() -> None:
    probs = [random_probs(3, 8, seed) for seed in (0, 1)]
    expected = torch.zeros((), dtype=torch.float64)
    for p, k in zip(probs, [5, 3], strict=True):
        latency = (enumerated(p) * STAIRS).sum(dim=1)
        expected += ((latency - STAIRS[k]) / STAIRS[8]).square().mean() / 2
    torch.testing.assert_close(latency_loss(probs, [5, 3], STAIRS), expected)
    torch.testing.assert_close(latency_loss(probs, [5, 3], 1e-3 * STAIRS), expected)  # any unit
    torch.testing.assert_close(latency_loss(probs, [torch.tensor(5), torch.tensor([3] * 3)], STAIRS), expected)


def test_proportional_latency_gives_the_keep_ratio_loss() -> None:
    probs = [random_probs(3, 10, seed) for seed in (0, 1)]
    latency = latency_loss(probs, [7, 5], torch.arange(11.0).double())
    torch.testing.assert_close(latency, keep_ratio_loss([p.mean(dim=1) for p in probs], [0.7, 0.5]))


def test_descent_meets_the_wanted_latency() -> None:
    """From nearly dense, for a cost that grows with the square."""
    table = torch.linspace(0, 1, 33) + torch.linspace(0, 1, 33).square()
    logits = torch.full((1, 32), 2.0).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(150):
        loss = latency_loss([logits.sigmoid()], [16], table)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(expected_latency(logits.detach().sigmoid(), table)) == pytest.approx(float(table[16]), rel=1e-2)
    assert float(logits.detach().sigmoid().sum()) < 15.9  # the spread of the count costs, too


def test_bad_input() -> None:
    probs = random_probs(2, 8)
    with pytest.raises(InputError, match=r"shape \(8,\) for 8 tokens; it needs 9 numbers"):
        expected_latency(probs, STAIRS[:8])
    for stages, counts in ((0, []), (2, [5])):
        with pytest.raises(InputError, match=f"{stages} stages and {len(counts)} counts"):
            latency_loss([probs] * stages, counts, STAIRS)
