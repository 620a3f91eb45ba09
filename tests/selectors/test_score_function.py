"""Score-function estimators: their gradients against enumeration of every decision, and their variances.

Four tokens, so that all decisions can be summed over. What is accepted lies within 5 standard errors of the
exact gradient; variants known to be wrong must lie beyond 20.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dynavit.losses import policy_gradient_loss
from dynavit.selectors import Selection, create_selector

LOGITS = torch.tensor([0.5, -1.0, 1.2, -0.3], dtype=torch.float64)
SUBSETS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)  # (16, 4)
DRAWS = 100_000
K = 2  # tokens that Plackett-Luce keeps
ACCEPT, REJECT = 5.0, 20.0  # standard errors


def multilinear(b: Tensor) -> Tensor:
    return 3 + b[..., 0] - 2 * b[..., 1] + 1.5 * b[..., 0] * b[..., 2] - b[..., 1] * b[..., 2] * b[..., 3]


def general(b: Tensor) -> Tensor:
    weights = torch.tensor([1.3, -0.7, 0.9, 1.7], dtype=b.dtype)
    return (2 * b @ weights).sin() + 0.3 * (b @ weights.flip(0) - 0.5) ** 3 + 2


# Exact probabilities


def log_bernoulli(logits: Tensor, b: Tensor) -> Tensor:
    return functional.logsigmoid((2 * b - 1) * logits).sum(dim=-1)


def log_order(logits: Tensor, order: tuple[int, ...]) -> Tensor:
    """Log-probability of drawing these tokens one after the other without replacement."""
    left = list(range(4))
    total = logits.new_zeros(())
    for token in order:
        total = total + logits[token] - logits[left].logsumexp(dim=0)
        left.remove(token)
    return total


def bernoulli_distribution(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Every subset ``(16, 4)`` and its probability."""
    return SUBSETS, log_bernoulli(logits, SUBSETS).exp()


def plackett_luce_distribution(logits: Tensor, k: int = K) -> tuple[Tensor, Tensor]:
    """Every set of k tokens, and its probability: the sum over the orders in which it can be drawn."""
    sets = SUBSETS[SUBSETS.sum(dim=1) == k]
    orders = [itertools.permutations(row.nonzero().flatten().tolist()) for row in sets]
    return sets, torch.stack([sum(log_order(logits, order).exp() for order in some) for some in orders])  # type: ignore


DISTRIBUTIONS = {"bernoulli": bernoulli_distribution, "plackett_luce": plackett_luce_distribution}


def exact_gradient(distribution: str, f: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return E f and its gradient with respect to the logits."""
    logits = LOGITS.clone().requires_grad_()
    decisions, probability = DISTRIBUTIONS[distribution](logits)
    mean = probability @ f(decisions)
    return mean.detach(), torch.autograd.grad(mean, logits)[0]


# Estimates


def draw(leaf: Tensor, copies: int, seed: int = 0, k: int | Tensor | None = K, **options: object) -> Selection:
    """Select ``copies`` times for each row of logits ``(B, N)``: rows 0 to B - 1, then again, as in training."""
    selector = create_selector("score_function", **options).train()
    logits = leaf.repeat(copies, 1)
    return selector(logits, torch.ones_like(logits, dtype=torch.bool), k, 1.0, torch.Generator().manual_seed(seed))


def rows(draws: int = DRAWS) -> Tensor:
    return LOGITS.expand(draws, 4).clone().requires_grad_()


def gradients(loss: Tensor, leaf: Tensor) -> Tensor:
    """One estimate of the gradient of E f a row: a loss is minimised, a reward is not."""
    return -torch.autograd.grad(loss * len(leaf), leaf, retain_graph=True)[0]


def reinforce(distribution: str, f: Callable[[Tensor], Tensor], baseline: float | Tensor = 0.0) -> Tensor:
    """Mean of two draws, each with the same constant subtracted."""
    leaf = rows()
    selection = draw(leaf, 2, distribution=distribution)
    assert selection.log_prob is not None
    return gradients(-((f(selection.keep.double()) - baseline) * selection.log_prob).mean(), leaf)


def leave_one_out(distribution: str, f: Callable[[Tensor], Tensor], copies: int = 2, **options: object) -> Tensor:
    leaf = rows()
    selection = draw(leaf, copies, distribution=distribution, **options)
    assert selection.log_prob is not None
    rewards = f(selection.keep.double()).view(copies, -1)
    return gradients(policy_gradient_loss(selection.log_prob.view(copies, -1), rewards), leaf)


def deviation(estimates: Tensor, exact: Tensor) -> float:
    """Largest distance of the mean from the exact value, in standard errors."""
    error = estimates.std(dim=0) / len(estimates) ** 0.5
    return float(((estimates.mean(dim=0) - exact).abs() / error).max())


def variance(estimates: Tensor) -> float:
    return float(estimates.var(dim=0).sum())


FUNCTIONS = pytest.mark.parametrize("f", [multilinear, general])
BOTH = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


@FUNCTIONS
@BOTH
def test_every_estimator_is_unbiased(distribution: str, f: Callable[[Tensor], Tensor]) -> None:
    mean, exact = exact_gradient(distribution, f)
    plain = reinforce(distribution, f)
    compared = leave_one_out(distribution, f)
    assert deviation(plain, exact) < ACCEPT
    assert deviation(reinforce(distribution, f, mean), exact) < ACCEPT
    assert deviation(compared, exact) < ACCEPT
    assert deviation(leave_one_out(distribution, f, copies=4), exact) < ACCEPT
    assert variance(compared) < 0.8 * variance(plain)  # from as many evaluations


@FUNCTIONS
def test_disarm_is_unbiased_with_less_variance(f: Callable[[Tensor], Tensor]) -> None:
    _, exact = exact_gradient("bernoulli", f)
    disarm = leave_one_out("bernoulli", f, antithetic=True)
    assert deviation(disarm, exact) < ACCEPT
    assert variance(disarm) < 0.9 * variance(leave_one_out("bernoulli", f))


@FUNCTIONS
def test_disarm_is_exact_on_average_over_all_pairs(f: Callable[[Tensor], Tensor]) -> None:
    """The estimate depends on the pair (decision, twin) alone: sum over all 3^4 of them by probability."""
    leaf = rows(40_000)
    selection = draw(leaf, 2, distribution="bernoulli", antithetic=True)
    assert selection.log_prob is not None
    keep = selection.keep.view(2, -1, 4)
    rewards = f(selection.keep.double()).view(2, -1)
    estimates = gradients(policy_gradient_loss(selection.log_prob.view(2, -1), rewards), leaf)
    p = LOGITS.sigmoid()
    alone = torch.minimum(p, 1 - p)  # only this one keeps, or only its twin
    chance = torch.stack([(1 - 2 * p).clamp(min=0), alone, alone, (2 * p - 1).clamp(min=0)])  # by 2 * own + twin
    codes = (2 * keep[0] + keep[1].int()).long()
    probability = chance.gather(0, codes).prod(dim=1)
    _, first = torch.unique(codes @ torch.tensor([64, 16, 4, 1]), return_inverse=True)
    number = int(first.max()) + 1
    assert number == 3**4
    place = torch.stack([(first == pair).nonzero()[0, 0] for pair in range(number)])
    assert float(probability[place].sum()) == pytest.approx(1, abs=1e-12)
    found = (probability[place, None] * estimates[place]).sum(dim=0)
    torch.testing.assert_close(found, exact_gradient("bernoulli", f)[1], rtol=1e-10, atol=1e-12)


def test_the_twin_has_the_opposite_noise() -> None:
    """An unbiased gradient does not prove it: without any coupling the estimate is unbiased too."""
    keep = draw(torch.zeros(1000, 4), 2, distribution="bernoulli", antithetic=True).keep
    assert torch.equal(keep[:1000], ~keep[1000:])
    keep = draw(torch.full((1000, 4), 1.0), 2, distribution="bernoulli", antithetic=True).keep
    assert bool((keep[:1000] | keep[1000:]).all())
    both = float((keep[:1000] & keep[1000:]).double().mean())
    assert both == pytest.approx(2 * 0.7310586 - 1, abs=5 * (0.46 * 0.54 / 4000) ** 0.5)


@FUNCTIONS
def test_opposite_noise_with_the_ordinary_log_probability_would_be_noticed(f: Callable[[Tensor], Tensor]) -> None:
    """The other decision is then no baseline: it depends on this one."""
    leaf = rows()
    keep = draw(leaf, 2, distribution="bernoulli", antithetic=True).keep
    log_prob = log_bernoulli(leaf.repeat(2, 1), keep.double())
    loss = policy_gradient_loss(log_prob.view(2, -1), f(keep.double()).view(2, -1))
    assert deviation(gradients(loss, leaf), exact_gradient("bernoulli", f)[1]) > REJECT


@FUNCTIONS
@BOTH
def test_a_baseline_that_contains_the_reward_itself_would_be_noticed(
    distribution: str, f: Callable[[Tensor], Tensor]
) -> None:
    leaf = rows()
    selection = draw(leaf, 2, distribution=distribution)
    assert selection.log_prob is not None
    rewards = f(selection.keep.double()).view(2, -1)
    loss = -((rewards - rewards.mean(dim=0)) * selection.log_prob.view(2, -1)).mean()
    assert deviation(gradients(loss, leaf), exact_gradient(distribution, f)[1]) > REJECT


# Log-probabilities


def test_log_probability_of_gates() -> None:
    selection = draw(rows(1000), 1, distribution="bernoulli")
    torch.testing.assert_close(selection.log_prob, log_bernoulli(LOGITS, selection.keep.double()))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_log_probability_is_that_of_an_order_of_the_set(k: int) -> None:
    """Each draw's equals that of one order of its tokens; all orders occur, as often as they should."""
    selection = draw(rows(), 1, k=k, distribution="plackett_luce")
    assert selection.log_prob is not None
    found = selection.log_prob.detach()
    orders = list(itertools.permutations(range(4), k))
    exact = torch.stack([log_order(LOGITS, order) for order in orders])
    code = torch.tensor([8, 4, 2, 1])
    of_set = torch.tensor([sum(int(code[token]) for token in order) for order in orders])
    distance = (found[:, None] - exact).abs().masked_fill((selection.keep.long() @ code)[:, None] != of_set, torch.inf)
    nearest = distance.min(dim=1)
    assert float(nearest.values.max()) < 1e-6
    counts = torch.bincount(nearest.indices, minlength=len(orders)).double()
    expected = DRAWS * exact.exp()
    assert float(expected.sum()) == pytest.approx(DRAWS)
    assert float(((counts - expected).abs() / expected.sqrt()).max()) < ACCEPT


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_sets_are_drawn_by_the_sum_over_their_orders(k: int) -> None:
    sets, probability = plackett_luce_distribution(LOGITS, k)
    assert float(probability.sum()) == pytest.approx(1, abs=1e-6)
    keep = draw(rows(), 1, k=k, distribution="plackett_luce").keep
    share = (keep[:, None] == sets.bool()).all(dim=2).double().mean(dim=0)
    error = (probability * (1 - probability) / DRAWS).sqrt().clamp(min=1e-12)
    assert float(((share - probability).abs() / error).max()) < ACCEPT


def test_sum_of_log_softmax_is_no_probability_of_a_set() -> None:
    """Tempting, and far off: it does not sum to 1, its score does not vanish, its gradient is biased."""
    leaf = rows()
    keep = draw(leaf, 2, distribution="plackett_luce").keep
    tempting = (leaf.repeat(2, 1).log_softmax(dim=1) * keep).sum(dim=1)
    sets, _ = plackett_luce_distribution(LOGITS)
    assert abs(float((sets @ LOGITS.log_softmax(dim=0)).exp().sum()) - 1) > 0.1
    assert deviation(gradients(tempting.mean(), leaf), torch.zeros(4).double()) > REJECT
    loss = policy_gradient_loss(tempting.view(2, -1), general(keep.double()).view(2, -1))
    assert deviation(gradients(loss, leaf), exact_gradient("plackett_luce", general)[1]) > REJECT


@BOTH
def test_the_score_vanishes_on_average(distribution: str) -> None:
    leaf = rows()
    selection = draw(leaf, 1, distribution=distribution)
    assert selection.log_prob is not None
    score = torch.autograd.grad(selection.log_prob.sum(), leaf)[0]
    assert deviation(score, torch.zeros(4).double()) < ACCEPT


# Several stages and images


@pytest.mark.parametrize("options", [{"antithetic": False}, {"antithetic": True}, {"distribution": "plackett_luce"}])
def test_dropped_tokens_take_no_part(options: dict[str, object]) -> None:
    """Two dead tokens beside the four: the same expectation, and no gradient to them."""
    options = {"distribution": "bernoulli", **options}
    leaf = torch.cat([LOGITS, torch.tensor([4.0, -4.0]).double()]).expand(DRAWS, 6).clone().requires_grad_()
    logits = leaf.repeat(2, 1)
    alive = (torch.arange(6) < 4).expand(logits.shape)
    selection = create_selector("score_function", **options).train()(
        logits, alive, K, 1.0, torch.Generator().manual_seed(0)
    )
    assert selection.log_prob is not None
    rewards = general(selection.keep[:, :4].double()).view(2, -1)
    estimates = gradients(policy_gradient_loss(selection.log_prob.view(2, -1), rewards), leaf)
    assert torch.equal(estimates[:, 4:], torch.zeros(DRAWS, 2).double())
    _, exact = exact_gradient(str(options["distribution"]), general)
    assert deviation(estimates[:, :4], exact) < ACCEPT


def test_each_image_may_keep_its_own_number() -> None:
    """Rows with their own k have the log-probability that they have among rows of that k."""
    counts = torch.tensor([1, 2, 3, 4]).repeat(50)
    mixed = draw(LOGITS.expand(200, 4), 1, k=counts, distribution="plackett_luce")
    assert mixed.log_prob is not None
    for k in (1, 2, 3, 4):
        alike = draw(LOGITS.expand(200, 4), 1, k=k, distribution="plackett_luce")  # the same noise
        assert alike.log_prob is not None
        assert torch.equal(mixed.keep[counts == k], alike.keep[counts == k])
        torch.testing.assert_close(mixed.log_prob[counts == k], alike.log_prob[counts == k])


def test_nothing_is_left_to_chance_once_the_logits_are_sure() -> None:
    """Far apart logits: log-probability 0, gradient 0, all finite."""
    leaf = torch.tensor([[60.0, -60.0, 60.0, -60.0]]).expand(8, 4).clone().requires_grad_()
    for options in ({"distribution": "plackett_luce"}, {"distribution": "bernoulli"}):
        selection = draw(leaf, 2, **options)
        assert torch.equal(selection.keep, (leaf > 0).repeat(2, 1))
        assert selection.log_prob is not None
        (gradient,) = torch.autograd.grad(selection.log_prob.sum(), leaf)
        assert bool(gradient.isfinite().all())
        if options["distribution"] == "bernoulli":
            assert float(selection.log_prob.detach().abs().max()) < 1e-12
            assert float(gradient.abs().max()) < 1e-12
