"""How a mask may enter attention: log(m (1 - eps) + eps), and what goes wrong otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dynavit.functional import log_mask

B, H, N, D = 2, 2, 9, 4
Bias = Callable[[Tensor], Tensor]


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, values and the weight of each output."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, H, N, N), (B, H, N, D), (B, H, N, D)]
    scores, values, weight = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return 2 * scores.to(dtype), values.to(dtype), weight.to(dtype)


def hard_mask(dtype: torch.dtype = torch.float32) -> Tensor:
    mask = (torch.rand(B, N, generator=torch.Generator().manual_seed(1)) < 0.6).to(dtype)
    mask[:, 0] = 1
    assert 0 < mask.mean() < 1
    return mask


def soft_mask(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(B, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def attend(mask: Tensor, bias: Bias | None) -> tuple[Tensor, Tensor]:
    """Output and mask gradient: additive bias, or with None weights times mask, renormalised."""
    scores, values, weight = inputs(mask.dtype)
    mask = mask.clone().requires_grad_()
    keys = mask[:, None, None, :]
    if bias is None:
        weights = scores.softmax(dim=-1) * keys
        output = weights / weights.sum(dim=-1, keepdim=True) @ values
    else:
        output = (scores + bias(keys)).softmax(dim=-1) @ values
    (gradient,) = torch.autograd.grad((output * weight).sum(), mask)
    return output.detach(), gradient


@pytest.mark.parametrize("make", [hard_mask, soft_mask])
def test_is_the_multiplicative_mask_in_value_and_gradient(make: Callable[..., Tensor]) -> None:
    expected, expected_gradient = attend(make(), None)
    output, gradient = attend(make(), log_mask)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
    assert (gradient != 0).all()


@pytest.mark.parametrize("big", [1e2, 1e4, 1e10])
def test_big_negative_numbers_multiply_the_gradient(big: float) -> None:
    """The negative control, and the bug that made training explode: right value, gradient times BIG."""
    expected, expected_gradient = attend(hard_mask(), None)
    output, gradient = attend(hard_mask(), lambda m: -(1 - m) * big)
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3)
    kept = hard_mask() == 1
    assert gradient[kept].norm() > 0.2 * big * expected_gradient[kept].norm()
    assert gradient[~kept].abs().max() < 1e-6 * gradient[kept].abs().max()


def test_clamping_stops_the_gradient_of_dropped_tokens() -> None:
    """The other negative control: log(clamp(m, eps)) would never let a dropped token back."""
    _, expected = attend(hard_mask(), None)
    _, gradient = attend(hard_mask(), lambda m: m.clamp(min=1e-6).log())
    dropped = hard_mask() == 0
    assert (expected[dropped] != 0).all()
    assert (gradient[dropped] == 0).all()


def test_values() -> None:
    assert log_mask(torch.ones(3)).tolist() == [0.0, 0.0, 0.0]
    for eps in (1e-3, 1e-4, 1e-5, 1e-6):
        assert log_mask(torch.ones(1), eps) == 0.0
        assert log_mask(torch.zeros(1), eps).item() == pytest.approx(torch.tensor(eps).log().item())
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert log_mask(torch.zeros(1, dtype=dtype)).dtype == torch.float32
        assert log_mask(torch.tensor([0.0, 0.25, 1.0], dtype=dtype)).isfinite().all()
    assert log_mask(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
