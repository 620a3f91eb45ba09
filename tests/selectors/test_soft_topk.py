"""Soft top-k: closed form against Sinkhorn, its gradient, and its limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynavit.selectors.functional import hard_topk, soft_topk


def make(rows: int = 3, n: int = 9, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def all_alive(logits: Tensor) -> Tensor:
    return torch.ones_like(logits, dtype=torch.bool)


def some_alive() -> Tensor:
    alive = torch.ones(3, 9, dtype=torch.bool)
    alive[0, 2:5] = False
    alive[1, ::2] = False
    return alive


def sinkhorn(scores: Tensor, k: int, eps: float, steps: int = 4000) -> Tensor:
    """Entropic transport of n unit masses to the anchors 1 (capacity k) and 0 (the rest), log domain."""
    n = scores.shape[0]
    cost = torch.stack([(scores - 1) ** 2, scores**2], dim=1)
    capacity = torch.tensor([k, n - k], dtype=scores.dtype).log()
    g = torch.zeros(2, dtype=scores.dtype)
    for _ in range(steps):
        f = -eps * ((g - cost) / eps).logsumexp(dim=1)
        g = eps * (capacity - ((f[:, None] - cost) / eps).logsumexp(dim=0))
    return ((f[:, None] + g - cost) / eps).exp()[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_equals_sinkhorn(temperature: float) -> None:
    logits = make(2)
    mask = soft_topk(logits, all_alive(logits), 4, temperature)
    for row in range(2):
        transported = sinkhorn(logits[row], 4, 2 * temperature)
        torch.testing.assert_close(mask[row], transported, atol=1e-12, rtol=0)
    # and with another regularisation it does not: the factor 2 is checked
    assert not torch.allclose(mask[0], sinkhorn(logits[0], 4, temperature), atol=1e-3)


@pytest.mark.parametrize("temperature", [2.0, 0.3, 0.05])
def test_sums_to_k(temperature: float) -> None:
    logits, alive = make(), some_alive()
    k = torch.tensor([2, 4, 8])
    mask = soft_topk(logits, alive, k, temperature)
    expected = torch.minimum(k, alive.sum(dim=1)).double()
    torch.testing.assert_close(mask.sum(dim=1), expected, atol=1e-10, rtol=0)
    assert ((mask >= 0) & (mask <= 1)).all()
    assert (mask[~alive] == 0).all()


@pytest.mark.parametrize("n", [196, 1024])
def test_sums_to_k_in_fp32(n: int) -> None:
    logits = 20 * make(4, n, dtype=torch.float32)
    k = 7 * n // 10
    mask = soft_topk(logits, all_alive(logits), k, 0.5)
    torch.testing.assert_close(mask.sum(dim=1), torch.full((4,), float(k)), atol=1e-2, rtol=0)


@pytest.mark.parametrize("k", [3, torch.tensor(3), torch.tensor([1, 3, 7])])
def test_gradcheck(k: int | Tensor) -> None:
    logits, alive = make().requires_grad_(), some_alive()
    assert torch.autograd.gradcheck(lambda x: soft_topk(x, alive, k, 0.7), (logits,), atol=1e-6)


def test_gradcheck_notices_a_gradient_that_does_not_know_k() -> None:
    """The negative control: independent sigmoids m (1 - m) / t, without the constraint's term."""

    class Unconstrained(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            mask = soft_topk(logits, all_alive(logits), 3, 0.7)
            ctx.save_for_backward(mask)
            return mask

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            (mask,) = ctx.saved_tensors
            return grad * mask * (1 - mask) / 0.7

    logits = make().requires_grad_()
    assert not torch.autograd.gradcheck(Unconstrained.apply, (logits,), raise_exception=False)


def test_jacobian_is_symmetric_positive_semidefinite_with_zero_row_sums() -> None:
    logits = make(1)[0]

    def row(x: Tensor) -> Tensor:
        return soft_topk(x[None], all_alive(x[None]), 4, 0.5)[0]

    jacobian = torch.autograd.functional.jacobian(row, logits)
    assert isinstance(jacobian, Tensor)
    torch.testing.assert_close(jacobian, jacobian.T, atol=1e-12, rtol=0)
    torch.testing.assert_close(jacobian.sum(dim=1), torch.zeros(9).double(), atol=1e-12, rtol=0)
    eigenvalues = torch.linalg.eigvalsh(jacobian)
    assert eigenvalues.min() > -1e-12
    # no amplification: the spectral norm is at most 1 / (4 temperature)
    assert 0.1 < eigenvalues.max() <= 1 / (4 * 0.5)


def test_forms_of_k_agree() -> None:
    logits, alive = make(), some_alive()
    reference = soft_topk(logits, alive, 3, 0.5)
    for k in (torch.tensor(3), torch.tensor([3]), torch.tensor([3, 3, 3])):
        assert torch.equal(soft_topk(logits, alive, k, 0.5), reference)
    assert torch.equal(soft_topk(logits, alive, 3, torch.tensor(0.5).double()), reference)


@pytest.mark.parametrize("k", [5, 6, 100, torch.tensor([9, 9, 9]), torch.tensor(1000)])
def test_everything_kept_is_exactly_one_without_gradient(k: int | Tensor) -> None:
    alive = torch.zeros(3, 9, dtype=torch.bool)
    alive[:, 1:6] = True
    logits = make().requires_grad_()
    mask = soft_topk(logits, alive, k, 0.5)
    assert torch.equal(mask, alive.double())
    (gradient,) = torch.autograd.grad((mask * make(seed=1)).sum(), logits)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_row_without_any_token_alive() -> None:
    alive = some_alive()
    alive[1] = False
    logits = make().requires_grad_()
    mask = soft_topk(logits, alive, 3, 0.5)
    assert torch.equal(mask[1], torch.zeros(9).double())
    (gradient,) = torch.autograd.grad((mask * make(seed=1)).sum(), logits)
    assert gradient.isfinite().all()
    assert torch.equal(gradient[1], torch.zeros(9).double())
    assert (gradient[0][alive[0]] != 0).all()


def test_dead_tokens_do_not_matter() -> None:
    logits, alive = make(), some_alive()
    reference = soft_topk(logits, alive, 3, 0.5)
    for value in (1e4, -1e4, 0.0):
        other = logits.masked_fill(~alive, value).requires_grad_()
        mask = soft_topk(other, alive, 3, 0.5)
        torch.testing.assert_close(mask, reference, atol=1e-12, rtol=0)
        (gradient,) = torch.autograd.grad((mask * make(seed=1)).sum(), other)
        assert (gradient[~alive] == 0).all()


def test_approaches_the_hard_choice() -> None:
    logits, alive = make(), some_alive()
    hard = hard_topk(logits, alive, 3).double()
    torch.testing.assert_close(soft_topk(logits, alive, 3, 1e-3), hard, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("logits", "k", "limit"),
    [
        ([1.0, 1.0, 1.0, 0.0], 2, [2 / 3, 2 / 3, 2 / 3, 0.0]),
        ([2.0, 1.0, 1.0, 0.0], 2, [1.0, 0.5, 0.5, 0.0]),
        ([0.0, 0.0, 0.0, 0.0], 1, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_ties_share(logits: list[float], k: int, limit: list[float]) -> None:
    row = torch.tensor([logits], dtype=torch.float64)
    mask = soft_topk(row, all_alive(row), k, 1e-3)
    torch.testing.assert_close(mask, torch.tensor([limit], dtype=torch.float64), atol=1e-9, rtol=0)


def test_order_preserving_and_shift_invariant() -> None:
    logits = make()
    mask = soft_topk(logits, all_alive(logits), 4, 0.5)
    assert torch.equal(mask.argsort(dim=1), logits.argsort(dim=1))
    shifted = soft_topk(logits + 100, all_alive(logits), 4, 0.5)
    torch.testing.assert_close(shifted, mask, atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 60.0, 1e4])
@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_finite_in_fp32(scale: float, temperature: float) -> None:
    logits = (scale * make(dtype=torch.float32)).requires_grad_()
    mask = soft_topk(logits, some_alive(), 3, temperature)
    (gradient,) = torch.autograd.grad((mask * make(seed=1).float()).sum(), logits)
    assert mask.isfinite().all()
    assert gradient.isfinite().all()
