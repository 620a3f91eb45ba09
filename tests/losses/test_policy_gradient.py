"""Leave-one-out advantages, and the gradient of the loss against enumeration of every decision."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from dynavit import InputError
from dynavit.losses import leave_one_out, policy_gradient_loss

LOGITS = torch.tensor([0.4, -1.1, 0.9], dtype=torch.float64)
DECISIONS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)  # (8, 3)


def reward(decisions: Tensor) -> Tensor:
    """Some function of the decisions ``(..., 3)`` that has no structure."""
    code = (decisions * torch.tensor([4.0, 2.0, 1.0], dtype=decisions.dtype)).sum(dim=-1)
    return (3.7 * code + 1).sin() + 5


def log_probability(logits: Tensor, decisions: Tensor) -> Tensor:
    return -torch.nn.functional.softplus((1 - 2 * decisions) * logits).sum(dim=-1)


def test_each_reward_is_compared_with_the_others() -> None:
    rewards = torch.randn(5, 4, dtype=torch.float64)
    advantages = leave_one_out(rewards)
    for number in range(5):
        others = torch.cat([rewards[:number], rewards[number + 1 :]])
        torch.testing.assert_close(advantages[number], rewards[number] - others.mean(dim=0))
    torch.testing.assert_close(advantages.sum(dim=0), torch.zeros(4, dtype=torch.float64))


def test_what_all_decisions_have_in_common_does_not_matter() -> None:
    rewards = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(leave_one_out(rewards + torch.tensor([1.0, -2.0, 30.0, 4.0])), leave_one_out(rewards))
    assert leave_one_out(torch.ones(3, 4, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("draws", [2, 3])
def test_gradient_is_exact_on_average_over_all_decisions(draws: int) -> None:
    """Sum over every tuple of K decisions, weighted by its probability, against autograd of -E[reward]."""
    logits = LOGITS.clone().requires_grad_()
    (exact,) = torch.autograd.grad(-(log_probability(logits, DECISIONS).exp() * reward(DECISIONS)).sum(), logits)
    probability = log_probability(LOGITS, DECISIONS).exp()
    found = torch.zeros_like(LOGITS)
    for chosen in itertools.product(range(8), repeat=draws):
        decisions = DECISIONS[list(chosen)]
        loss = policy_gradient_loss(log_probability(logits, decisions)[:, None], reward(decisions)[:, None])
        found += probability[list(chosen)].prod() * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-14)


def test_a_baseline_that_contains_the_decision_itself_would_be_noticed() -> None:
    """Subtracting the mean over all K shrinks the gradient by (K - 1) / K."""
    rewards = torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close((rewards - rewards.mean(dim=0)) * 2, leave_one_out(rewards))


def test_mean_over_decisions_and_images() -> None:
    log_prob = torch.tensor([[-1.0, -2.0], [-3.0, -5.0]], requires_grad=True)
    loss = policy_gradient_loss(log_prob, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert float(loss.detach()) == pytest.approx(-(1 * -1 + -1 * -3) / 4)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(gradient, torch.tensor([[-0.25, 0.0], [0.25, 0.0]]))


def test_rewards_get_no_gradient() -> None:
    rewards = torch.randn(2, 3, requires_grad=True)
    loss = policy_gradient_loss(torch.randn(2, 3, requires_grad=True), rewards)
    assert torch.autograd.grad(loss, rewards, allow_unused=True) == (None,)


@pytest.mark.parametrize("shape", [(1, 4), (4,), (0, 4)])
def test_one_decision_has_nothing_to_be_compared_with(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="draw at least two"):
        leave_one_out(torch.ones(shape))


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match=r"\(2, 3\) and rewards of shape \(2, 1\)"):
        policy_gradient_loss(torch.zeros(2, 3), torch.zeros(2, 1))
