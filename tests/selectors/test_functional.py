"""Counting, noise, straight-through and hard top-k."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dynavit.functional import indices_of, num_keep
from dynavit.selectors.functional import gumbel_noise, hard_topk, logistic_noise, straight_through


@pytest.mark.parametrize("ratio", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_num_keep_gives_the_published_counts(ratio: float) -> None:
    """DynamicViT's int(196 * ratio^i)."""
    for stage in (1, 2, 3):
        assert num_keep(196, round(ratio**stage, 3)) == int(196 * ratio**stage)


def test_num_keep_is_monotone_and_between_one_and_all() -> None:
    for tokens in (1, 2, 49, 196, 577):
        counts = [num_keep(tokens, permille / 1000) for permille in range(1, 1001)]
        assert counts == sorted(counts)
        assert counts[0] == max(1, tokens // 1000)
        assert counts[-1] == tokens


def test_indices_are_ascending_and_those_chosen_come_first() -> None:
    chosen = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    indices = indices_of(chosen, 12)
    assert indices.dtype == torch.int64
    for row, found in zip(chosen, indices, strict=True):
        assert torch.equal(found[: row.sum()], row.nonzero().flatten())


def ks_distance(sample: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    """Kolmogorov-Smirnov statistic sqrt(n) sup |F_n - F|; above 2.2 with probability 1e-4."""
    ordered = sample.double().sort().values
    n = len(ordered)
    rank = torch.arange(n, dtype=torch.float64)
    above = ((rank + 1) / n - cdf(ordered)).max()
    below = (cdf(ordered) - rank / n).max()
    return float(torch.maximum(above, below)) * n**0.5


def logistic_cdf(x: Tensor) -> Tensor:
    return x.sigmoid()


def gumbel_cdf(x: Tensor) -> Tensor:
    return (-(-x).exp()).exp()


def test_noise_has_its_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    like = torch.empty(200_000)
    logistic, gumbel = logistic_noise(like, generator), gumbel_noise(like, generator)
    assert ks_distance(logistic, logistic_cdf) < 2.2
    assert ks_distance(gumbel, gumbel_cdf) < 2.2
    assert ks_distance(gumbel, logistic_cdf) > 20
    assert ks_distance(logistic, gumbel_cdf) > 20


@pytest.mark.parametrize("noise", [logistic_noise, gumbel_noise])
def test_noise_is_finite_wherever_the_uniform_falls(
    noise: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.rand may return 0, and nearly 1; plain logarithms of it are infinite."""
    extremes = torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-24])

    def rand(*args: Any, **kwargs: Any) -> Tensor:
        assert kwargs["dtype"] == torch.float32
        return extremes.clone()

    monkeypatch.setattr(torch, "rand", rand)
    drawn = noise(torch.empty(4, dtype=torch.bfloat16))
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()
    assert drawn.abs().max() < 16.7
    assert not (extremes.log() - torch.log1p(-extremes)).isfinite().all()


@pytest.mark.parametrize("noise", [logistic_noise, gumbel_noise])
def test_noise_follows_its_generator(noise: Callable[..., Tensor]) -> None:
    like = torch.empty(50)
    first = noise(like, torch.Generator().manual_seed(1))
    assert torch.equal(first, noise(like, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, noise(like, torch.Generator().manual_seed(2)))
    torch.manual_seed(1)
    assert torch.equal(first, noise(like))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_straight_through_is_exact(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hard = torch.randint(0, 2, (100_000,), generator=generator).to(dtype)
    soft = (20 * torch.randn(100_000, generator=generator)).to(dtype).requires_grad_()
    result = straight_through(hard, soft)
    assert torch.equal(result, hard)
    (gradient,) = torch.autograd.grad(result.sum(), soft)
    assert torch.equal(gradient, torch.ones_like(soft))
    assert not torch.equal(hard - soft.detach() + soft, hard)  # the usual spelling rounds


def brute_force_topk(logits: list[float], alive: list[bool], k: int) -> list[bool]:
    order = sorted((i for i in range(len(logits)) if alive[i]), key=lambda i: (-logits[i], i))
    return [i in order[:k] for i in range(len(logits))]


def test_hard_topk_equals_sorting() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        # few distinct values: plenty of ties
        logits = torch.randint(-2, 3, (6, 9), generator=generator).float()
        alive = torch.rand(6, 9, generator=generator) < 0.6
        counts = torch.randint(0, 11, (6,), generator=generator)
        rows = zip(logits.tolist(), alive.tolist(), counts.tolist(), strict=True)
        expected = torch.tensor([brute_force_topk(*row) for row in rows])
        assert torch.equal(hard_topk(logits, alive, counts), expected)
        for k in (0, 4, 9, 20):
            rows = zip(logits.tolist(), alive.tolist(), [k] * 6, strict=True)
            expected = torch.tensor([brute_force_topk(*row) for row in rows])
            assert torch.equal(hard_topk(logits, alive, k), expected)
            assert torch.equal(hard_topk(logits, alive, torch.tensor(k)), expected)


PHI = torch.tensor([0.5, -1.0, 1.2, 0.0, 0.3])


def plackett_luce_pairs() -> dict[tuple[int, int], float]:
    """Probability of each unordered pair when two of five are drawn without replacement."""
    weight = PHI.double().exp()
    share = weight / weight.sum()
    pairs = dict.fromkeys(itertools.combinations(range(5), 2), 0.0)
    for i, j in itertools.permutations(range(5), 2):
        pairs[min(i, j), max(i, j)] += float(share[i] * share[j] / (1 - share[i]))
    return pairs


def pair_chi_square(noise: Callable[..., Tensor], draws: int = 200_000) -> tuple[float, Tensor]:
    """Chi-square against Plackett-Luce (9 degrees of freedom), and the inclusion frequencies."""
    logits = PHI.expand(draws, 5)
    noisy = logits + noise(logits, torch.Generator().manual_seed(7))
    keep = hard_topk(noisy, torch.ones_like(noisy, dtype=torch.bool), 2)
    assert (keep.sum(dim=1) == 2).all()
    statistic = 0.0
    for (i, j), probability in plackett_luce_pairs().items():
        observed = float((keep[:, i] & keep[:, j]).sum())
        statistic += (observed - draws * probability) ** 2 / (draws * probability)
    return statistic, keep.double().mean(dim=0)


def test_gumbel_topk_samples_plackett_luce() -> None:
    inclusion = torch.zeros(5, dtype=torch.float64)
    for (i, j), probability in plackett_luce_pairs().items():
        inclusion[i] += probability
        inclusion[j] += probability
    stated = torch.tensor([0.4661, 0.1147, 0.7282, 0.2988, 0.3922], dtype=torch.float64)
    torch.testing.assert_close(inclusion, stated, atol=1e-4, rtol=0)

    statistic, frequencies = pair_chi_square(gumbel_noise)
    assert statistic < 33.7  # probability 1e-4
    assert ((frequencies - inclusion).abs() < 5 * (inclusion * (1 - inclusion) / 200_000).sqrt()).all()

    wrong, _ = pair_chi_square(logistic_noise)
    assert wrong > 1000
    assert math.isfinite(wrong)
