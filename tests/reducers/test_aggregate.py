"""Learned mixtures of the kept tokens, and the 1e10 that destroyed training where they were published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.reducers import Aggregate, TokenSet
from dynavit.selectors.functional import straight_through

Make = Callable[..., Any]
DIM = 10


def aggregate(tokens: int = 4) -> Aggregate:
    torch.manual_seed(0)
    return Aggregate(DIM, tokens)


def test_equals_the_formula(stage_of: Make) -> None:
    reducer = aggregate()
    reducer.scale.data.fill_(1.7)
    kept, dropped = stage_of().gathered()
    reduced = reducer(kept, dropped)
    for image in range(len(kept.tokens)):
        x = kept.tokens[image]
        scores = 1.7 * reducer.mlp(x)  # (k, tokens)
        for j in range(4):
            share = scores[:, j].exp() / scores[:, j].exp().sum()
            torch.testing.assert_close(reduced.tokens[image, j], sum(share[i] * x[i] for i in range(len(x))))
        left = dropped.logits[image].exp() / dropped.logits[image].exp().sum()
        torch.testing.assert_close(reduced.made[image, 0], left @ dropped.tokens[image])
    assert (reduced.target == 4).all()
    torch.testing.assert_close(reducer.weights(kept).sum(dim=2), torch.ones(3, 4))


def test_a_mask_of_ones_changes_no_value(stage_of: Make) -> None:
    reducer, (kept, dropped) = aggregate(), stage_of().gathered()
    plain = reducer(kept, dropped)
    masked = reducer(TokenSet(kept.tokens, kept.logits, torch.ones_like(kept.logits)), dropped)
    assert torch.equal(plain.tokens, masked.tokens)
    assert torch.equal(plain.made, masked.made)


def gradients(kept: TokenSet, dropped: TokenSet, weights: Callable[[Aggregate, TokenSet], Tensor]) -> dict[str, Tensor]:
    """Gradients of a task loss to the kept tokens' mask and logits, the dropped logits and the parameters."""
    reducer = aggregate()
    kept_logits, dropped_logits = kept.logits.clone().requires_grad_(), dropped.logits.clone().requires_grad_()
    mask = straight_through(torch.ones_like(kept_logits), kept_logits.sigmoid())
    mask.retain_grad()
    part = TokenSet(kept.tokens, kept_logits, mask)
    made = reducer(part, TokenSet(dropped.tokens, dropped_logits)).made
    mixed = weights(reducer, part) @ kept.tokens
    torch.cat([mixed, made], dim=1).mean(dim=1).square().sum().backward()
    found = {"mask": mask.grad, "kept": kept_logits.grad, "dropped": dropped_logits.grad}
    return {**found, "mlp": reducer.mlp[1].weight.grad, "value": mixed.detach()}


def published(reducer: Aggregate, kept: TokenSet) -> Tensor:
    """The negative control: ``-(1 - mask) * 1e10`` added to the logits, as in the released module."""
    assert kept.mask is not None
    logits = (reducer.scale * reducer.mlp(kept.tokens)).transpose(1, 2)
    return (logits - (1 - kept.mask).unsqueeze(1) * 1e10).softmax(dim=2)


def test_gradients_are_finite_and_not_amplified(stage_of: Make) -> None:
    kept, dropped = stage_of().gathered()
    good = gradients(kept, dropped, Aggregate.weights)
    for what in ("mask", "kept", "dropped", "mlp"):
        assert good[what].isfinite().all()
        assert 1e-6 < good[what].norm() < 10, what
    assert (good["mask"] != 0).all()
    assert (good["dropped"] != 0).all()

    bad = gradients(kept, dropped, published)
    assert torch.equal(bad["value"], good["value"])  # nothing looks wrong in the forward
    for what in ("mask", "kept"):
        assert bad[what].norm() > 1e6 * good[what].norm()


def test_mask_gradient_is_that_of_a_weight(stage_of: Make) -> None:
    """Where the mask is 1 its logarithm has the gradient of multiplying the shares and renormalising."""
    reducer, (kept, _) = aggregate().double(), stage_of(dtype=torch.float64).gathered()
    mask = torch.ones_like(kept.logits).requires_grad_()
    found = torch.autograd.grad(
        (reducer.weights(TokenSet(kept.tokens, kept.logits, mask)) @ kept.tokens)[..., 0].sum(), mask
    )[0]
    shares = reducer.weights(kept).detach() * mask.unsqueeze(1)
    product = shares / shares.sum(dim=2, keepdim=True) @ kept.tokens
    expected = torch.autograd.grad(product[..., 0].sum(), mask)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_dropped_gradient_matches_finite_differences(stage_of: Make) -> None:
    reducer, (kept, dropped) = aggregate().double(), stage_of(dtype=torch.float64).gathered()

    def made(logits: Tensor) -> Tensor:
        return reducer(kept, TokenSet(dropped.tokens, logits)).made

    assert torch.autograd.gradcheck(made, dropped.logits.clone().requires_grad_())


def test_every_parameter_learns(stage_of: Make) -> None:
    reducer = aggregate()
    reducer(*stage_of().gathered()).tokens.square().sum().backward()
    for name, parameter in reducer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.norm() > 1e-4, name


def test_more_mixtures_than_kept_tokens(stage_of: Make) -> None:
    kept, dropped = stage_of().gathered()
    reduced = aggregate(tokens=9)(kept, dropped)
    assert reduced.tokens.shape == (3, 9, DIM)
    assert reduced.tokens.isfinite().all()


@pytest.mark.parametrize("value", [0, -3, 2.5, "8", True])
def test_number_of_mixtures_is_checked(value: Any) -> None:
    with pytest.raises(InputError, match=f"'aggregate': tokens={value!r}; give a whole number of at least 1"):
        Aggregate(DIM, value)
