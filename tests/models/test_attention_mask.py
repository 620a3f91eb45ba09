"""The two forms of the attention mask beside DynamicViT's policy softmax (T17)."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from dynavit.models.tokens import attention_mask

B, H, P, N, D = 2, 2, 1, 8, 4
L = P + N
F64 = torch.float64


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Raw scores, values, output weights and a hard mask of the patches."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(B, H, L, L, generator=generator, dtype=F64)
    values = torch.randn(B, H, L, D, generator=generator, dtype=F64)
    weight = torch.randn(B, H, L, D, generator=generator, dtype=F64)
    mask = (torch.rand(B, N, generator=generator) < 0.5).to(F64)
    assert 0 < mask.mean() < 1
    return scores, values, weight, mask


def whole(mask: Tensor) -> Tensor:
    """The mask of all tokens, prefix included."""
    return torch.cat([mask.new_ones(B, P), mask], dim=1)


def policy_softmax(scores: Tensor, mask: Tensor, eps: float = 1e-6) -> Tensor:
    """DynamicViT's own formula, with its identity term and its eps / N."""
    policy = whole(mask)[:, None, None, :]
    itself = torch.eye(L, dtype=mask.dtype)
    policy = policy + (1 - policy) * itself
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp() * policy
    return (weights + eps / L) / (weights.sum(dim=-1, keepdim=True) + eps)


def multiplicative(scores: Tensor, mask: Tensor) -> Tensor:
    weights = scores.softmax(dim=-1) * whole(mask)[:, None, None, :]
    return weights / weights.sum(dim=-1, keepdim=True)


def ours(scores: Tensor, mask: Tensor, form: Literal["key", "identity"]) -> Tensor:
    return (scores + attention_mask(mask, P, training=True, form=form)).softmax(dim=-1)


def outcome(kind: str) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the mask of a loss that reads the kept rows alone."""
    scores, values, weight, mask = inputs()
    leaf = mask.clone().requires_grad_()
    if kind == "policy":
        attention = policy_softmax(scores, leaf)
    elif kind == "multiplicative":
        attention = multiplicative(scores, leaf)
    else:
        attention = ours(scores, leaf, kind)  # type: ignore[arg-type]
    output = attention @ values
    kept_rows = whole(mask)[:, None, :, None]
    (gradient,) = torch.autograd.grad((output * weight * kept_rows).sum(), leaf)
    return output.detach(), gradient


def test_identity_form_is_dynamicvit() -> None:
    output, gradient = outcome("identity")
    expected, expected_gradient = outcome("policy")
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=0)
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


def test_key_form_differs_where_it_should_and_nowhere_else() -> None:
    mask = inputs()[-1]
    rows = whole(mask).bool()[:, None, :].expand(B, H, L)
    output, gradient = outcome("key")
    expected, expected_gradient = outcome("policy")
    torch.testing.assert_close(output[rows], expected[rows], atol=1e-4, rtol=0)
    assert (output[~rows] - expected[~rows]).abs().max() > 0.1  # never read
    dropped, kept = mask == 0, mask == 1
    error = gradient - expected_gradient
    assert error[dropped].norm() < 1e-4 * expected_gradient[dropped].norm()
    # the identity form cancels a kept token's attention to itself: not a mistake to be repaired
    assert error[kept].norm() > 0.01 * expected_gradient[kept].norm()


def test_key_form_is_the_multiplicative_one() -> None:
    output, gradient = outcome("key")
    expected, expected_gradient = outcome("multiplicative")
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=0)
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


def test_padded_values_are_the_multiplicative_form() -> None:
    """An alternative without any mask, [m v, m], equal to 1e-12: both are the same quotient."""
    scores, values, _, mask = inputs()
    keys = whole(mask)[:, None, :, None]
    both = scores.softmax(dim=-1) @ torch.cat([keys * values, keys.expand(B, H, L, 1)], dim=-1)
    quotient = both[..., :D] / both[..., D:]
    torch.testing.assert_close(quotient, multiplicative(scores, mask) @ values, atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", ["key", "identity"])
def test_eval_mask_is_boolean_and_exact(form: Literal["key", "identity"]) -> None:
    mask = inputs()[-1]
    keys = attention_mask(mask, P, training=False, form=form)
    assert keys.dtype == torch.bool
    assert keys.shape == (B, 1, 1, L)
    assert torch.equal(keys[:, 0, 0], whole(mask).bool())


def test_shapes_and_the_diagonal() -> None:
    mask = inputs()[-1]
    key = attention_mask(mask, P, training=True, form="key")
    identity = attention_mask(mask, P, training=True, form="identity")
    assert key.shape == (B, 1, 1, L)
    assert identity.shape == (B, 1, L, L)
    assert torch.equal(identity.diagonal(dim1=-2, dim2=-1), torch.zeros(B, 1, L, dtype=F64))
    away = ~torch.eye(L, dtype=torch.bool)
    expected = key.expand(B, 1, L, L)
    torch.testing.assert_close(identity[:, :, away], expected[:, :, away])


def test_a_far_larger_dropped_key_leaks() -> None:
    """The stated limit: eps lets a dropped key through that is more than ln(1e6) = 13.8 nats larger."""
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    bias = attention_mask(mask, 0, training=True, form="key")[0, 0, 0]
    leaked = [float((torch.tensor([0.0, 0.0, nats]) + bias).softmax(dim=0)[2]) for nats in (0, 5, 14, 30)]
    assert leaked[0] < 1e-6
    assert leaked[1] < 1e-4
    assert 0.1 < leaked[2] < 0.5
    assert leaked[3] > 0.99
