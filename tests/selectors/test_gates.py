"""Binary gates: their keep probability, their mean, the moments of their gradient, and that variants
known to be wrong would be noticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dynavit.selectors import Selection, create_selector
from dynavit.selectors.functional import gumbel_noise, logistic_noise

LOGITS = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
DRAWS = 200_000
ACCEPT, REJECT = 5.0, 20.0  # standard errors


def sample(name: str, logits: Tensor, temperature: float, seed: int = 0) -> Selection:
    """Run a selector in training mode with every token alive."""
    alive = torch.ones_like(logits, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    return create_selector(name).train()(logits, alive, None, temperature, generator)


def rows(values: Tensor, draws: int = DRAWS) -> Tensor:
    return values[:, None].expand(-1, draws).clone()


def deviations(kept: Tensor) -> Tensor:
    """How many standard errors each row's share of kept tokens is from sigmoid(logit)."""
    p = LOGITS.sigmoid()
    return (kept.double().mean(dim=1) - p).abs() / (p * (1 - p) / kept.shape[1]).sqrt()


@pytest.mark.parametrize("temperature", [5.0, 1.0, 0.1])
@pytest.mark.parametrize("name", ["ste", "gumbel_sigmoid"])
def test_kept_with_probability_sigmoid_at_every_temperature(name: str, temperature: float) -> None:
    selection = sample(name, rows(LOGITS), temperature)
    assert deviations(selection.keep).max() < ACCEPT
    assert deviations(selection.mask > 0.5).max() < ACCEPT
    torch.testing.assert_close(selection.probs, rows(LOGITS).sigmoid())


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(gumbel_noise, id="single_gumbel"),
        pytest.param(lambda like, generator: logistic_noise(like, generator) / 2, id="half_logistic"),
        pytest.param(lambda like, generator: torch.randn(like.shape, generator=generator), id="normal"),
    ],
)
def test_other_noise_would_be_noticed(noise: Callable[..., Tensor]) -> None:
    kept = rows(LOGITS) + noise(rows(LOGITS), torch.Generator().manual_seed(0)) > 0
    assert deviations(kept).max() > REJECT


def test_single_gumbel_keeps_with_its_own_probability() -> None:
    """The negative control fails for the reason given: P = 1 - exp(-exp(l)), 0.632 at 0."""
    kept = rows(LOGITS) + gumbel_noise(rows(LOGITS), torch.Generator().manual_seed(0)) > 0
    p = 1 - (-LOGITS.exp()).exp()
    z = (kept.double().mean(dim=1) - p).abs() / (p * (1 - p) / DRAWS).sqrt()
    assert z[:-1].max() < ACCEPT  # at l = 3 it is 1 within a billionth
    assert p[3] == pytest.approx(0.6321, abs=1e-4)


def test_mean_of_the_soft_gate() -> None:
    """E z = e^l (e^l - 1 - l) / (e^l - 1)^2 at temperature 1: not sigmoid(l)."""
    logits = torch.tensor([-2.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    e = logits.exp()
    expected = e * (e - 1 - logits) / (e - 1) ** 2
    torch.testing.assert_close(expected, torch.tensor([0.20551, 0.33870, 0.58265, 0.79449]).double(), atol=1e-5, rtol=0)
    mask = sample("gumbel_sigmoid", rows(logits.float()), 1.0).mask.double()
    error = mask.std(dim=1) / DRAWS**0.5
    assert ((mask.mean(dim=1) - expected).abs() / error).max() < ACCEPT
    assert ((mask.mean(dim=1) - logits.sigmoid()).abs() / error).max() > REJECT


def moments(logit: float, temperature: float) -> tuple[float, float]:
    """Mean and second moment of the gradient dz/dl, by quadrature over y = (l + noise) / temperature."""
    y = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    noise = temperature * y - logit
    density = noise.sigmoid() * (-noise).sigmoid()
    slope = y.sigmoid() * (-y).sigmoid()
    mean = torch.trapezoid(slope * density, y)
    square = torch.trapezoid(slope**2 * density, y) / temperature
    return float(mean), float(square)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1, 0.05])
@pytest.mark.parametrize("name", ["ste", "gumbel_sigmoid"])
def test_gradient_moments(name: str, temperature: float) -> None:
    logits = rows(torch.tensor([0.0, 1.5])).requires_grad_()
    sample(name, logits, temperature, seed=1).mask.sum().backward()
    assert logits.grad is not None
    gradient = logits.grad.double()
    for row, logit in enumerate([0.0, 1.5]):
        mean, square = moments(logit, temperature)
        for values, exact in ((gradient[row], mean), (gradient[row] ** 2, square)):
            assert float((values.mean() - exact).abs() / (values.std() / DRAWS**0.5)) < ACCEPT


def test_gradient_variance_grows_as_one_over_temperature() -> None:
    temperatures = torch.tensor([0.005, 0.01, 0.02, 0.05], dtype=torch.float64)
    variances = []
    for temperature in temperatures.tolist():
        mean, square = moments(0.0, temperature)
        variances.append(square - mean**2)
    found = torch.tensor(variances, dtype=torch.float64)
    torch.testing.assert_close(found, 0.25 / (6 * temperatures) - 0.25**2, rtol=2e-3, atol=0)
    slope = float((found[-1] / found[0]).log() / (temperatures[-1] / temperatures[0]).log())
    assert -1.06 < slope < -0.98  # -2 would be the law of perturbed optimisers


def test_an_image_never_loses_every_token() -> None:
    """Where no gate opens, the nearest to opening stays, with its own gradient."""
    logits = torch.full((50, 6), -25.0).requires_grad_()
    alive = torch.ones(50, 6, dtype=torch.bool)
    alive[:, 3] = False
    selection = create_selector("ste").train()(logits, alive, None, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(selection.keep.sum(dim=1), torch.ones(50, dtype=torch.long))
    assert torch.equal(selection.mask, selection.keep.float())
    noise = logistic_noise(logits, torch.Generator().manual_seed(0)).masked_fill(~alive, -1e9)
    assert torch.equal(selection.keep.int().argmax(dim=1), noise.argmax(dim=1))
    assert not selection.keep[:, 3].any()
    # and one open gate is enough for nothing to be added
    logits = torch.full((50, 6), -25.0)
    logits[:, 2] = 25.0
    assert torch.equal(sample("ste", logits, 1.0).keep, logits > 0)


def test_hard_and_soft_use_the_same_noise() -> None:
    """The forward decision is the one whose gradient is taken: a coupling that no bias test sees."""
    logits = torch.randn(4, 500, generator=torch.Generator().manual_seed(3)).requires_grad_()
    soft = sample("gumbel_sigmoid", logits, 0.7, seed=5).mask
    hard = sample("ste", logits, 0.7, seed=5)
    assert torch.equal(hard.mask > 0.5, soft > 0.5)
    assert torch.equal(hard.keep, hard.mask == 1)
    weight = torch.randn(4, 500, generator=torch.Generator().manual_seed(4))
    (gradient,) = torch.autograd.grad((hard.mask * weight).sum(), logits)
    expected = weight * soft * (1 - soft) / 0.7
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-5, atol=1e-7)
    # independent noise in the two directions would give another gradient altogether
    other = sample("gumbel_sigmoid", logits, 0.7, seed=6).mask
    assert not torch.allclose(gradient, weight * other * (1 - other) / 0.7, atol=1e-2)
