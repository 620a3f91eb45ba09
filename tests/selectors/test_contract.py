"""What every selector promises: alive tokens, ties, forms of k, precision, no noise in eval."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dynavit.selectors import Selection, Selector, create_selector, list_selectors, registry
from dynavit.selectors.functional import hard_topk

VARIANTS = {
    **{name: {"name": name} for name in list_selectors() if name != "fixed"},  # which has to be told what to keep
    "topk, gate": {"name": "topk", "gradient": "gate"},
    "topk, none": {"name": "topk", "gradient": "none"},
    "ste, bernoulli": {"name": "ste", "backward": "bernoulli"},
    "ste, reinmax": {"name": "ste", "backward": "reinmax"},
    "score_function, bernoulli": {"name": "score_function", "distribution": "bernoulli"},
    "score_function, disarm": {"name": "score_function", "distribution": "bernoulli", "antithetic": True},
}


def create(variant: str) -> Selector:
    return create_selector(**VARIANTS[variant])


NAMES = list(VARIANTS)
LEARNED = [name for name in NAMES if create(name).trains_predictor]
SCORED = [name for name in NAMES if create(name).needs_scores]
HARD = [name for name in NAMES if not create(name).soft]
GATES = [name for name in LEARNED if create(name).budget == "expected"]
DENSE = [name for name in LEARNED if name not in ("topk, gate", "perturbed_topk")]  # gradient to every alive token
B, N, K = 4, 12, 5


def make_logits(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(B, N, generator=torch.Generator().manual_seed(seed))).to(dtype)


def make_alive(seed: int = 1) -> Tensor:
    alive = torch.rand(B, N, generator=torch.Generator().manual_seed(seed)) < 0.7
    alive[:, :2] = True
    alive[:, 2] = False
    return alive


def run(
    name: str,
    logits: Tensor,
    alive: Tensor,
    k: int | Tensor | None = K,
    *,
    training: bool = True,
    temperature: float = 0.8,
    seed: int = 2,
) -> Selection:
    selector = create(name).train(training)
    return selector(logits, alive, k, temperature, torch.Generator().manual_seed(seed))


def gradient(selection: Selection, logits: Tensor) -> Tensor:
    weight = torch.randn(B, N, generator=torch.Generator().manual_seed(9))
    (result,) = torch.autograd.grad((selection.mask * weight).sum(), logits)
    return result


def test_the_lists_are_what_they_should_be() -> None:
    assert set(NAMES) - set(LEARNED) == {
        "random", "topk, none", "score_function", "score_function, bernoulli", "score_function, disarm",
    }  # fmt: skip
    assert set(GATES) == {"gumbel_sigmoid", "ste", "ste, bernoulli", "ste, reinmax", "threshold_ste"}
    assert set(NAMES) - set(HARD) == {"gumbel_sigmoid", "soft_topk", "perturbed_topk"}
    assert set(NAMES) - set(SCORED) == {"random"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_only_alive_tokens_are_kept(name: str, training: bool) -> None:
    logits, alive = make_logits().requires_grad_(), make_alive()
    selection = run(name, logits, alive, training=training)
    for tensor in (selection.keep, selection.mask, selection.probs):
        assert tensor.shape == (B, N)
        assert (tensor[~alive] == 0).all()
    assert selection.keep.dtype == torch.bool
    assert selection.mask.dtype == selection.probs.dtype == torch.float32
    assert ((selection.mask >= 0) & (selection.mask <= 1)).all()
    assert ((selection.probs >= 0) & (selection.probs <= 1)).all()
    assert selection.keep.any()


@pytest.mark.parametrize("name", DENSE)
def test_gradient_reaches_every_alive_token_and_no_other(name: str) -> None:
    logits, alive = make_logits().requires_grad_(), make_alive()
    result = gradient(run(name, logits, alive), logits)
    assert result.isfinite().all()
    assert (result[~alive] == 0).all()
    assert (result[alive] != 0).all()


def test_a_gate_teaches_kept_tokens_alone() -> None:
    logits, alive = make_logits().requires_grad_(), make_alive()
    selection = run("topk, gate", logits, alive)
    result = gradient(selection, logits)
    assert (result[selection.keep] != 0).all()
    assert (result[~selection.keep] == 0).all()
    expected = logits.sigmoid() * (-logits).sigmoid()
    tempered = (logits / 0.8).sigmoid() * (-logits / 0.8).sigmoid() / 0.8
    weight = torch.randn(B, N, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(result, (tempered * weight * selection.keep).detach())
    assert not torch.allclose(result, (expected * weight * selection.keep).detach())


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(LEARNED)))
def test_selectors_without_a_gradient_have_none(name: str) -> None:
    """By this the trainer knows that it has to freeze their predictors, or to reward them."""
    logits = make_logits().requires_grad_()
    selection = run(name, logits, make_alive())
    assert not selection.mask.requires_grad
    rewarded = create(name).needs_reward
    assert rewarded == name.startswith("score_function")
    assert (selection.log_prob is not None) == rewarded
    if selection.log_prob is not None:
        (result,) = torch.autograd.grad(selection.log_prob.sum(), logits)
        assert selection.log_prob.shape == (B,)
        assert (result != 0).any()
        assert (result[~make_alive()] == 0).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [1e4, -1e4, float("nan"), float("inf"), -float("inf")])
def test_dead_logits_do_not_matter(name: str, training: bool, value: float) -> None:
    alive = make_alive()
    clean = make_logits().requires_grad_()
    dirty = make_logits().masked_fill(~alive, value).requires_grad_()
    expected, found = (run(name, x, alive, training=training) for x in (clean, dirty))
    assert torch.equal(found.keep, expected.keep)
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.probs, expected.probs)
    if found.mask.requires_grad:
        assert torch.equal(gradient(found, dirty), gradient(expected, clean))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_image_without_a_token_alive(name: str, training: bool) -> None:
    logits, alive = make_logits().requires_grad_(), make_alive()
    alive[1] = False
    selection = run(name, logits, alive, training=training)
    assert not selection.keep[1].any()
    assert (selection.mask[1] == 0).all()
    assert (selection.probs[1] == 0).all()
    if selection.mask.requires_grad:
        result = gradient(selection, logits)
        assert result.isfinite().all()
        assert (result[1] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_more_wanted_than_alive(name: str) -> None:
    alive = make_alive()
    for k in (N, 10 * N, torch.full((B,), N)):
        assert torch.equal(run(name, make_logits(), alive, k, training=False).keep, alive)


@pytest.mark.parametrize("name", SCORED)
def test_eval_keeps_the_k_largest_without_noise_or_temperature(name: str) -> None:
    logits, alive = make_logits(), make_alive()
    expected = hard_topk(logits, alive, K)
    assert (expected.sum(dim=1) == torch.clamp(alive.sum(dim=1), max=K)).all()
    selector = create(name).eval()
    generator = torch.Generator().manual_seed(0)
    before, global_before = generator.get_state(), torch.get_rng_state()
    for temperature in (0.01, 1.0, 50.0):
        selection = selector(logits, alive, K, temperature, generator)
        assert torch.equal(selection.keep, expected)
        assert torch.equal(selection.mask, expected.float())
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), global_before)


@pytest.mark.parametrize("name", SCORED)
def test_ties_go_to_the_lowest_index(name: str) -> None:
    kept = run(name, torch.zeros(B, N), torch.ones(B, N, dtype=torch.bool), 3, training=False).keep
    assert torch.equal(kept, (torch.arange(N) < 3).expand(B, N))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_forms_of_k_agree(name: str, training: bool) -> None:
    logits, alive = make_logits(), make_alive()
    expected = run(name, logits, alive, 3, training=training)
    for k in (torch.tensor(3), torch.tensor([3] * B)):
        found = run(name, logits, alive, k, training=training)
        assert torch.equal(found.keep, expected.keep)
        assert torch.equal(found.mask, expected.mask)
    counts = torch.tensor([1, 2, 3, 4])
    assert torch.equal(
        run(name, logits, alive, counts, training=False).keep.sum(dim=1),
        torch.minimum(counts, alive.sum(dim=1)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_k_is_asked_for_where_it_is_needed(name: str) -> None:
    selector = create(name)
    logits, alive = make_logits(), make_alive()
    with pytest.raises(ValueError, match="needs k"):
        selector.eval()(logits, alive)
    if selector.budget == "k":
        with pytest.raises(ValueError, match="always"):
            selector.train()(logits, alive)
    else:
        selector.train()(logits, alive)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HARD)
def test_hard_masks_are_exactly_zero_or_one(name: str, dtype: torch.dtype) -> None:
    logits, alive = (10 * make_logits()).to(dtype), make_alive()
    selection = run(name, logits, alive)
    assert selection.mask.dtype == torch.float32
    assert torch.equal(selection.mask, selection.keep.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("name", LEARNED)
def test_half_precision_logits_up_to_60(name: str, dtype: torch.dtype, temperature: float) -> None:
    logits = torch.linspace(-60, 60, B * N).reshape(B, N).to(dtype).requires_grad_()
    alive = torch.ones(B, N, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        selection = run(name, logits, alive, temperature=temperature)
    for tensor in (selection.mask, selection.probs):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    result = gradient(selection, logits)
    assert result.dtype == dtype
    assert result.isfinite().all()
    # half precision is left on entry: the same numbers in fp32 give the same selection
    exact = run(name, logits.detach().float(), alive, temperature=temperature)
    assert torch.equal(selection.mask, exact.mask)


@pytest.mark.parametrize("name", SCORED)
def test_noise_comes_from_the_generator_alone(name: str) -> None:
    logits, alive = make_logits(), make_alive()
    first = run(name, logits, alive, seed=1)
    torch.manual_seed(123)
    assert torch.equal(first.mask, run(name, logits, alive, seed=1).mask)
    changed = any(not torch.equal(first.mask, run(name, logits, alive, seed=s).mask) for s in (2, 3, 4, 5))
    assert changed == create(name).stochastic


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [name for name in DENSE if name != "soft_topk"] + ["topk, gate"])
def test_permutation_equivariance(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permuting logits, alive and noise permutes the selection."""
    noise = make_logits(seed=5)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(6))

    def select(x: Tensor, alive: Tensor, drawn: Tensor) -> Selection:
        monkeypatch.setattr("dynavit.selectors.concrete.logistic_noise", lambda like, generator: drawn)
        monkeypatch.setattr("dynavit.selectors.topk.gumbel_noise", lambda like, generator: drawn)
        return run(name, x, alive, training=training)

    logits, alive = make_logits(), make_alive()
    plain = select(logits, alive, noise)
    permuted = select(logits[:, order], alive[:, order], noise[:, order])
    assert torch.equal(permuted.keep, plain.keep[:, order])
    torch.testing.assert_close(permuted.mask, plain.mask[:, order], atol=1e-6, rtol=0)
    torch.testing.assert_close(permuted.probs, plain.probs[:, order], atol=1e-6, rtol=0)
    assert not torch.equal(permuted.keep, plain.keep)


@pytest.mark.parametrize("name", ["topk", "gumbel_topk", "soft_topk", "perturbed_topk", *GATES])
def test_selectors_of_k_do_not_notice_a_shift_but_gates_do(name: str) -> None:
    alive, results = make_alive(), []
    for shift in (0.0, 3.0):
        logits = (make_logits() + shift).requires_grad_()
        selection = run(name, logits, alive)
        results.append((selection.mask, gradient(selection, logits), selection.probs))
    if name in GATES:
        assert results[1][2].sum() > results[0][2].sum() + B
    else:
        torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [4.0, 1.0, 0.25, 0.1])
@pytest.mark.parametrize("name", [name for name in LEARNED if name != "perturbed_topk"])  # variance 1 / sigma^2
def test_no_amplification(name: str, temperature: float) -> None:
    """T12: the gradient of the logits is at most max(1, 1 / (4 temperature)) that of the mask."""
    logits = make_logits().requires_grad_()
    result = gradient(run(name, logits, make_alive(), temperature=temperature), logits)
    weight = torch.randn(B, N, generator=torch.Generator().manual_seed(9))
    bound = max(1.0, 1 / (4 * temperature))
    assert (result.norm(dim=1) <= 1.0001 * bound * weight.norm(dim=1)).all()


@pytest.mark.parametrize("name", ["topk", "gumbel_topk", "soft_topk"])
def test_topk_gradient_is_that_of_soft_topk(name: str) -> None:
    """Straight-through: hard value, gradient of the relaxation, whose mass is k."""
    logits, alive = make_logits().requires_grad_(), make_alive()
    selection = run(name, logits, alive)
    expected = torch.minimum(torch.tensor(K), alive.sum(dim=1)).float()
    torch.testing.assert_close(selection.probs.sum(dim=1), expected, atol=1e-4, rtol=0)
    (of_probs,) = torch.autograd.grad(
        (selection.probs * torch.randn(B, N, generator=torch.Generator().manual_seed(9))).sum(),
        logits,
        retain_graph=True,
    )
    (of_count,) = torch.autograd.grad(selection.probs.sum(), logits, retain_graph=True)
    assert torch.equal(gradient(selection, logits), of_probs)
    # k is met whatever the logits: a budget loss could teach it nothing
    torch.testing.assert_close(of_count, torch.zeros_like(of_count), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", GATES)
def test_gates_give_the_budget_a_gradient(name: str) -> None:
    logits, alive = make_logits().requires_grad_(), make_alive()
    (result,) = torch.autograd.grad(run(name, logits, alive).probs.sum(), logits)
    assert (result[alive] > 0).all()
    assert (result[~alive] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_selectors_hold_no_state(name: str) -> None:
    selector = create(name)
    assert not selector.state_dict()
    before = dict(vars(selector))
    selector.train()(make_logits(), make_alive(), K)
    selector.eval()(make_logits(), make_alive(), K)
    assert {key: value for key, value in vars(selector).items() if key != "training"} == {
        key: value for key, value in before.items() if key != "training"
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_selector_can_be_saved(name: str) -> None:
    config = registry.selector_config(create(name))
    assert isinstance(create_selector(**config), Selector)
    assert VARIANTS[name].items() <= config.items()


@pytest.mark.parametrize("name", ["topk", "gumbel_topk", "soft_topk", "perturbed_topk"])
def test_per_image_counts_in_training(name: str) -> None:
    counts = torch.tensor([1, 2, 3, 4])
    for dtype in (torch.float32, torch.float64):
        logits = make_logits(dtype=dtype).requires_grad_()
        selection = run(name, logits, torch.ones(B, N, dtype=torch.bool), counts)
        assert selection.mask.dtype == dtype
        assert torch.equal(selection.keep.sum(dim=1), counts)
        torch.testing.assert_close(selection.probs.sum(dim=1), counts.to(dtype), atol=1e-4, rtol=0)


def noisy_categorical(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A known-bad gate: log-softmax over tokens fed to independent gates (finding 7)."""
    share = logits.log_softmax(dim=1)
    noise = torch.rand(logits.shape, generator=generator).logit(eps=1e-6)
    return share + noise > 0


@pytest.mark.parametrize("gate", [noisy_categorical])
def test_gates_over_a_softmax_would_keep_next_to_nothing(
    gate: Callable[[Tensor, torch.Generator], Tensor],
) -> None:
    """Why predictors emit raw logits: sum(p / (1 + p)) < 1 token is kept on average."""
    logits = torch.zeros(20_000, 32)
    kept = gate(logits, torch.Generator().manual_seed(0))
    assert float(kept.sum(dim=1).float().mean()) == pytest.approx(32 / 33, abs=0.03)
    assert float((~kept.any(dim=1)).float().mean()) == pytest.approx((32 / 33) ** 32, abs=0.02)
    raw = run_ste(logits)
    assert float(raw.sum(dim=1).float().mean()) == pytest.approx(16, abs=0.2)


def run_ste(logits: Tensor) -> Tensor:
    alive = torch.ones_like(logits, dtype=torch.bool)
    return create_selector("ste").train()(logits, alive, None, 1.0, torch.Generator().manual_seed(0)).keep
