"""Each known-bad formula does what it is accused of, and what the library has instead does not."""

import math
import re
from pathlib import Path

import pytest
import torch

import dynavit
from dynavit.functional import log_mask, masked_mean
from dynavit.selectors import Selector, create_selector, list_selectors
from studies import known_bad


def test_they_stay_in_the_studies() -> None:
    root = Path(dynavit.__file__).parent
    assert not [path for path in root.rglob("*.py") if re.search(r"\bstudies\b|known_bad", path.read_text())]
    registered = {type(create_selector(name)).__module__ for name in list_selectors()}
    assert not any(module.startswith("studies.") for module in registered)


def test_additive_mask_multiplies_the_gradient_and_log_mask_does_not() -> None:
    for bias, size in ((lambda m: known_bad.additive_mask(m, 1e10), 1e10), (log_mask, 1.0)):
        mask = torch.ones(3, requires_grad=True)
        value = bias(mask)
        assert value.tolist() == [0, 0, 0]
        value.sum().backward()
        assert mask.grad is not None
        assert mask.grad.tolist() == pytest.approx([size] * 3, rel=1e-5)


def test_one_winner_mask_keeps_the_same_tokens_with_and_without_noise() -> None:
    scores = torch.randn(4, 9, requires_grad=True)
    keep, mask = known_bad.one_winner_mask(scores, 3)
    quiet, _ = known_bad.one_winner_mask(scores, 3, noise=False)
    assert torch.equal(mask, keep.float())
    assert torch.equal(keep, quiet)
    (gradient,) = torch.autograd.grad(mask[:, 0].sum(), scores)
    assert (gradient != 0).all()
    assert gradient.sum(dim=1).abs().max() < 1e-6  # of a softmax


def test_the_two_means_differ_only_where_next_to_nothing_is_kept() -> None:
    tokens = torch.randn(3, 6, 5)
    mask = torch.zeros(3, 6)
    mask[0, :3], mask[1, 2] = 1.0, 1.0  # three, one, none
    results = []
    for pool in (masked_mean, known_bad.unclamped_mean):
        leaf = mask.clone().requires_grad_()
        mean = pool(tokens, leaf)
        mean.sum().backward()
        assert leaf.grad is not None
        results.append((mean.detach(), leaf.grad))
    (mean, gradient), (bad_mean, bad_gradient) = results
    torch.testing.assert_close(bad_mean, mean, rtol=2e-3, atol=1e-6)
    assert (bad_gradient[2] / gradient[2]).tolist() == pytest.approx([1000.0] * 6, rel=1e-3)
    assert torch.equal(mean[2], torch.zeros(5))
    # with three tokens the gradient is that of the mean, whichever way
    torch.testing.assert_close(bad_gradient[0], gradient[0], rtol=5e-3, atol=1e-2)


def kept_fraction(selector: Selector, logit: float) -> float:
    logits = torch.full((400, 100), logit)
    generator = torch.Generator().manual_seed(0)
    return selector(logits, torch.ones_like(logits, dtype=torch.bool), None, 1.0, generator).keep.float().mean().item()


@pytest.mark.parametrize("logit", [-1.0, 0.0, 1.0])
def test_one_gumbel_keeps_with_another_probability_than_its_budget_loss_believes(logit: float) -> None:
    believed, true = 1 / (1 + math.exp(-logit)), 1 - math.exp(-math.exp(logit))
    assert kept_fraction(known_bad.SingleGumbel(), logit) == pytest.approx(true, abs=0.01)
    assert kept_fraction(known_bad.UnguardedGate(), logit) == pytest.approx(believed, abs=0.01)
    assert kept_fraction(create_selector("ste"), logit) == pytest.approx(believed, abs=0.01)
    assert abs(true - believed) > 0.03


def test_softmax_then_log_cannot_keep_more_than_one_token() -> None:
    for logits in (torch.zeros(1, 32), 3 * torch.randn(1, 32), 100 + torch.zeros(1, 32)):
        alive = torch.ones(1, 32, dtype=torch.bool)
        probs = known_bad.SoftmaxLogGate()(logits, alive, None).probs
        assert probs.sum() < 1
    assert probs.sum().item() == pytest.approx(32 / 33)
    some = torch.arange(32)[None] < 4
    selection = known_bad.SoftmaxLogGate()(logits, some, None)
    assert selection.probs[0, :4].sum().item() == pytest.approx(4 / 5)
    assert selection.probs[0, 4:].sum() == 0


def test_the_diagonal_of_a_jacobian_is_no_gradient() -> None:
    def vjp(selector: Selector) -> torch.Tensor:
        logits = torch.tensor([[0.4, 0.0, -0.3]], requires_grad=True)
        generator = torch.Generator().manual_seed(0)
        mask = selector(logits, torch.ones(1, 3, dtype=torch.bool), 1, 1.0, generator).mask
        (gradient,) = torch.autograd.grad(mask @ torch.tensor([1.0, 2.0, -1.0]), logits)
        return gradient[0]

    sigma, samples = 0.5, 20_000
    # by quadrature: the Jacobian's diagonal is .5653, .4764, .2792
    wrong = vjp(known_bad.DiagonalPerturbedTopK(sigma, samples))
    assert wrong.tolist() == pytest.approx([0.5653, 2 * 0.4764, -0.2792], abs=0.05)
    right = vjp(create_selector("perturbed_topk", sigma=sigma, samples=samples))
    assert right.tolist() == pytest.approx([-0.013, 0.667, -0.654], abs=0.05)
    assert abs(right.sum()) < 0.05 < abs(wrong.sum())
