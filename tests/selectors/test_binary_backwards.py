"""The backwards of straight-through gates, against the exact gradient of E f(decision).

Four tokens, so that all 16 decisions can be summed over; a fifth is certain to stay, so that no image is left
empty. ``bernoulli`` is exact where f is linear in each gate, ``reinmax`` also where it is quadratic, neither on a
general f; ``concrete`` nowhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dynavit.selectors import create_selector

LOGITS = torch.tensor([0.5, -1.0, 1.2, -0.3], dtype=torch.float64)
CERTAIN = torch.tensor([40.0], dtype=torch.float64)
DECISIONS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)  # (16, 4)
DRAWS = 200_000
ACCEPT, REJECT = 5.0, 50.0  # standard errors

Function = Callable[[Tensor], Tensor]


def multilinear(m: Tensor) -> Tensor:
    return m[..., 0] - 2 * m[..., 1] + 1.5 * m[..., 0] * m[..., 2] - m[..., 1] * m[..., 2] * m[..., 3]


def quadratic(m: Tensor) -> Tensor:
    weights = torch.tensor([1.3, -0.7, 0.9, 1.7], dtype=m.dtype)
    return (m @ weights - 0.4).square() + 2 * (m @ weights.flip(0) - 1.5).square()


def general(m: Tensor) -> Tensor:
    weights = torch.tensor([1.3, -0.7, 0.9, 1.7], dtype=m.dtype)
    return (2 * m @ weights).sin() + 2 * m.pow(4).sum(dim=-1)


def exact_gradient(f: Function) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    probability = functional.logsigmoid((2 * DECISIONS - 1) * logits).sum(dim=1).exp()
    return torch.autograd.grad(probability @ f(DECISIONS), logits)[0]


def estimates(
    backward: str, f: Function, temperature: float = 1.0, draws: int = DRAWS, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Decisions ``(draws, 4)`` and, for each, its gradient with respect to the logits."""
    logits = torch.cat([LOGITS, CERTAIN]).expand(draws, 5).clone().requires_grad_()
    selection = create_selector("ste", backward=backward).train()(
        logits, torch.ones(draws, 5, dtype=torch.bool), None, temperature, torch.Generator().manual_seed(seed)
    )
    assert bool(selection.keep[:, 4].all())
    (gradient,) = torch.autograd.grad(f(selection.mask[:, :4]).sum(), logits)
    return selection.keep[:, :4], gradient[:, :4]


def deviation(found: Tensor, exact: Tensor) -> float:
    """Largest distance of the mean from the exact value, in standard errors."""
    error = found.std(dim=0) / len(found) ** 0.5
    return float(((found.mean(dim=0) - exact).abs() / error).max())


UNBIASED = [("bernoulli", multilinear), ("reinmax", multilinear), ("reinmax", quadratic)]
BIASED = [("bernoulli", quadratic), ("bernoulli", general), ("reinmax", general)]


@pytest.mark.parametrize(("backward", "f"), UNBIASED)
def test_unbiased_where_promised(backward: str, f: Function) -> None:
    assert deviation(estimates(backward, f)[1], exact_gradient(f)) < ACCEPT


@pytest.mark.parametrize(("backward", "f"), BIASED)
def test_biased_elsewhere(backward: str, f: Function) -> None:
    """As theory says; and so the test above is able to fail."""
    assert deviation(estimates(backward, f)[1], exact_gradient(f)) > REJECT


@pytest.mark.parametrize("f", [multilinear, quadratic, general])
def test_concrete_is_biased(f: Function) -> None:
    assert deviation(estimates("concrete", f)[1], exact_gradient(f)) > REJECT


@pytest.mark.parametrize(("backward", "f"), UNBIASED + BIASED)
def test_exact_on_average_over_all_decisions(backward: str, f: Function) -> None:
    """These gradients depend on the noise through the decision alone, so the mean needs no statistics."""
    keep, gradient = estimates(backward, f, draws=20_000)
    found = torch.zeros(4, dtype=torch.float64)
    for decision in DECISIONS:
        rows = gradient[(keep == decision.bool()).all(dim=1)]
        assert len(rows)
        torch.testing.assert_close(rows, rows[:1].expand_as(rows))
        found += functional.logsigmoid((2 * decision - 1) * LOGITS).sum().exp() * rows[0]
    exact = exact_gradient(f)
    if (backward, f) in UNBIASED:
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)
    else:
        assert float((found - exact).norm() / exact.norm()) > 0.05


@pytest.mark.parametrize("backward", ["bernoulli", "reinmax"])
def test_the_temperature_does_not_matter(backward: str) -> None:
    cold, hot = (estimates(backward, general, temperature, draws=1000) for temperature in (0.1, 5.0))
    assert all(torch.equal(one, other) for one, other in zip(cold, hot, strict=True))
    cold, hot = (estimates("concrete", general, temperature, draws=1000) for temperature in (0.1, 5.0))
    assert torch.equal(cold[0], hot[0])  # the decisions never depend on it
    assert not torch.allclose(cold[1], hot[1])


def test_a_lower_temperature_adds_variance() -> None:
    variances = [float(estimates("concrete", multilinear, t)[1].var(dim=0).sum()) for t in (1.0, 0.3, 0.05)]
    assert variances[0] < variances[1] / 2 < variances[2] / 4


@pytest.mark.parametrize("backward", ["concrete", "bernoulli", "reinmax"])
def test_finite_and_fading_at_extreme_logits(backward: str) -> None:
    logits = torch.tensor([[60.0, -60.0, 0.0]], requires_grad=True)
    selection = create_selector("ste", backward=backward).train()(
        logits, torch.ones(1, 3, dtype=torch.bool), None, 1.0, torch.Generator().manual_seed(0)
    )
    (gradient,) = torch.autograd.grad(selection.mask.sum(), logits)
    assert gradient[0, :2].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert float(gradient[0, 2]) > 0.01


def test_dead_tokens_get_no_gradient() -> None:
    for backward in ("concrete", "bernoulli", "reinmax"):
        logits = torch.zeros(200, 3, requires_grad=True)
        alive = torch.tensor([True, False, True]).expand(200, 3)
        selection = create_selector("ste", backward=backward).train()(
            logits, alive, None, 1.0, torch.Generator().manual_seed(0)
        )
        (gradient,) = torch.autograd.grad(selection.mask.sum(), logits)
        assert torch.equal(gradient[:, 1], torch.zeros(200))
        assert bool((gradient[:, ::2] > 0).all())
