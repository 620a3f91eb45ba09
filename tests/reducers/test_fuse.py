"""The fused token: EViT's formula, weights that sum to one, gradients, and scores far apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.reducers import Fuse, TokenSet
from dynavit.selectors.functional import straight_through

Make = Callable[..., Any]


def fuse(kept: TokenSet, dropped: TokenSet, normalize: bool = True) -> Tensor:
    made = Fuse(normalize)(kept, dropped).made
    assert made is not None
    return made


def test_unnormalised_is_evits_token() -> None:
    """Section 3.3: the sum over the inattentive tokens of class attention times token."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 8, 6, generator=generator)
    attention = torch.randn(2, 3, 9, generator=generator).softmax(dim=2)[:, :, 1:].mean(dim=1)
    rank = attention.argsort(dim=1, descending=True).argsort(dim=1)
    dropped = rank >= 5
    logits = attention.log()
    made = fuse(TokenSet(tokens, logits, (~dropped).float()), TokenSet(tokens, logits, dropped.float()), False)
    for image in range(2):
        expected = sum(attention[image, i] * tokens[image, i] for i in range(8) if dropped[image, i])
        torch.testing.assert_close(made[image, 0], expected)


@pytest.mark.parametrize("shift", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("masked", [False, True])
def test_normalised_weights_sum_to_one_at_any_scale(shift: float, masked: bool) -> None:
    """Tokens that are unit vectors show the weights; a shift of the logits changes none of them."""
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 0]]).float() if masked else None
    tokens = torch.eye(6).expand(2, 6, 6)
    kept = TokenSet(tokens, logits)
    weights = fuse(kept, TokenSet(tokens, logits + shift, mask)).squeeze(1)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
    chosen = torch.ones(2, 6) if mask is None else mask
    expected = logits.double().exp() * chosen
    torch.testing.assert_close(weights, (expected / expected.sum(1, True)).float(), rtol=1e-4, atol=1e-6)
    assert ((weights == 0) == (chosen == 0)).all()


@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_of_tokens_and_logits(normalize: bool, stage_of: Make) -> None:
    """Numerically, in fp64; they reach every dropped logit and no other."""
    stage = stage_of(dtype=torch.float64)

    def made(tokens: Tensor, logits: Tensor) -> Tensor:
        kept, dropped = (mask.to(logits.dtype) for mask in (stage.keep, stage.drop))
        return fuse(TokenSet(tokens, logits, kept), TokenSet(tokens, logits, dropped), normalize)

    tokens, logits = stage.tokens.clone().requires_grad_(), stage.logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(made, (tokens, logits))
    made(tokens, logits)[..., 0].sum().backward()
    assert logits.grad is not None
    assert tokens.grad is not None
    assert (logits.grad[stage.drop] != 0).all()
    assert (logits.grad[~stage.drop] == 0).all()
    assert (tokens.grad[~stage.drop] == 0).all()


def dropped_mean(kept_mask: Tensor, logits: Tensor, tokens: Tensor) -> Tensor:
    """The negative control: all tokens' softmax times ``1 - mask``, renormalised."""
    weights = logits.softmax(dim=1) * (1 - kept_mask)
    return (weights / weights.sum(dim=1, keepdim=True)).unsqueeze(1) @ tokens


def test_kept_tokens_far_above_the_dropped(stage_of: Make) -> None:
    """At 30 nats nothing grows; weighting by ``1 - mask`` has the same value and a gradient of 1e10."""
    stage = stage_of()
    base, far = stage.logits, stage.logits + 30 * stage.keep
    norms = {}
    for what, values in (("near", base), ("far", far)):
        logits, tokens = values.clone().requires_grad_(), stage.tokens.clone().requires_grad_()
        mask = straight_through(stage.keep.float(), logits.sigmoid())
        made = fuse(TokenSet(tokens, logits, mask), TokenSet(tokens, logits, stage.drop.float()))
        (made.square().sum()).backward()
        assert logits.grad is not None
        assert tokens.grad is not None
        norms[what] = logits.grad.norm()
        assert tokens.grad.norm() < 10
    torch.testing.assert_close(norms["near"], norms["far"])
    assert norms["far"] < 10

    rows = stage.keep | stage.drop
    logits = far.masked_fill(~rows, -1e9)
    mask = stage.keep.float().requires_grad_()
    bad = dropped_mean(mask, logits, stage.tokens)
    good = fuse(TokenSet(stage.tokens, far), TokenSet(stage.tokens, far, stage.drop.float()))
    torch.testing.assert_close(bad, good, rtol=1e-3, atol=1e-3)
    bad.square().sum().backward()
    assert mask.grad is not None
    assert mask.grad.norm() > 1e10


def test_one_image_drops_and_another_does_not() -> None:
    """The made token of the one is its only dropped token, that of the other is zero with zero gradients."""
    tokens = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = torch.zeros(2, 4, requires_grad=True)
    mask = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for normalize in (True, False):
        made = fuse(TokenSet(tokens, logits), TokenSet(tokens, logits, mask), normalize)
        torch.testing.assert_close(made[0, 0], tokens[0, 1])
        assert (made[1] == 0).all()
        gradients = torch.autograd.grad((made * made.detach() + made).sum(), (tokens, logits))
        for gradient in gradients:
            assert gradient.isfinite().all()
            assert (gradient[1] == 0).all()


def test_target_is_the_made_token(stage_of: Make) -> None:
    kept, dropped = stage_of().gathered()
    target = Fuse()(kept, dropped).target
    assert target is not None
    assert target.shape == dropped.logits.shape
    assert (target == kept.logits.shape[1]).all()


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_normalize_is_a_bool(value: Any) -> None:
    with pytest.raises(InputError, match=f"'fuse': normalize={value!r}; choose true or false"):
        Fuse(value)
