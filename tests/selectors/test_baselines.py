"""The random baseline and the replay of decisions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from dynavit import InputError
from dynavit.selectors import Fixed, Random, create_selector

N, K, SEEDS = 16, 4, 400


def places(n: int, batch: int = 1) -> Tensor:
    return torch.arange(n).expand(batch, n)


def kept(seed: int, stage: int = 0, n: int = N, k: int = K) -> Tensor:
    """Which of n patches a seed keeps at a stage."""
    selector = Random(seed).at(stage, places(n))
    return selector(torch.zeros(1, n), torch.ones(1, n, dtype=torch.bool), k).keep[0]


def chi_square(observed: Tensor, expected: float) -> float:
    return float(((observed.double() - expected) ** 2 / expected).sum())


def test_same_for_every_image_whatever_its_scores() -> None:
    logits = torch.randn(5, N, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        selector = Random(3).train(training).at(1, places(N, 5))
        keep = selector(logits, torch.ones(5, N, dtype=torch.bool), K).keep
        assert (keep == keep[0]).all()
        assert torch.equal(keep[0], kept(3, stage=1))
        assert keep[0].sum() == K


def test_depends_on_seed_and_stage() -> None:
    assert torch.equal(kept(0), kept(0))
    seeds = torch.stack([kept(seed) for seed in range(20)])
    stages = torch.stack([kept(0, stage) for stage in range(20)])
    assert len(seeds.unique(dim=0)) > 15
    assert len(stages.unique(dim=0)) > 15
    for seed in (-1, 2**40, 2**64):  # any Python integer will do
        assert kept(seed).sum() == K


def test_nested_in_k() -> None:
    """A ranking: what a smaller k keeps, a larger one keeps too."""
    for k in range(1, N):
        assert not (kept(5, k=k) & ~kept(5, k=k + 1)).any()


def test_independent_of_who_else_is_alive() -> None:
    """The order among the survivors is the same whether others are there, dead, or gone."""
    ranking = torch.stack([kept(2, k=k) for k in range(1, N + 1)]).sum(dim=0)  # larger is earlier
    alive = torch.rand(1, N, generator=torch.Generator().manual_seed(0)) < 0.6
    survivors = alive[0].nonzero()[:, 0]
    best = survivors[ranking[survivors].argsort(descending=True)[:3]].sort().values
    logits = torch.zeros(1, N)

    masked = Random(2).at(0, places(N))(logits, alive, 3).keep[0].nonzero()[:, 0]
    assert torch.equal(masked, best)
    n = len(survivors)
    gathered = Random(2).at(0, survivors[None])(logits[:, :n], torch.ones(1, n, dtype=torch.bool), 3)
    assert torch.equal(survivors[gathered.keep[0]], best)


def test_every_patch_and_every_pair_is_kept_equally_often() -> None:
    for stage in (0, 2):
        keep = torch.stack([kept(seed, stage) for seed in range(SEEDS)])
        # without replacement the statistic is (N - 1) / (N - K) smaller: 44 is above probability 1e-4
        assert chi_square(keep.sum(dim=0), SEEDS * K / N) < 44
        pairs = torch.stack([(keep[:, i] & keep[:, j]).sum() for i, j in itertools.combinations(range(N), 2)])
        assert chi_square(pairs, SEEDS * K * (K - 1) / (N * (N - 1))) < 185  # 119 degrees of freedom


def test_uniformity_check_notices_a_poor_generator() -> None:
    """The negative control: a window that the seed moves is uniform for patches, not for pairs."""
    window = torch.stack([((torch.arange(N) - seed) % N) < K for seed in range(SEEDS)])
    pairs = torch.stack([(window[:, i] & window[:, j]).sum() for i, j in itertools.combinations(range(N), 2)])
    assert chi_square(pairs, SEEDS * K * (K - 1) / (N * (N - 1))) > 500


def test_stages_are_unrelated() -> None:
    """Two stages agree as often as chance: hypergeometric mean K * K / N."""
    overlap = torch.tensor([float((kept(seed, 0) & kept(seed, 1)).sum()) for seed in range(SEEDS)], dtype=torch.float64)
    error = float(overlap.std()) / SEEDS**0.5
    assert abs(float(overlap.mean()) - K * K / N) < 5 * error


def test_random_has_no_gradient_and_needs_no_scores() -> None:
    selector = create_selector("random", seed=4)
    logits = torch.zeros(2, N, requires_grad=True)
    selection = selector.train()(logits, torch.ones(2, N, dtype=torch.bool), K)
    assert not selection.mask.requires_grad
    assert not selector.trains_scorer
    assert not selector.needs_scores


def decide(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_fixed_replays_each_stage_at_its_place() -> None:
    first, second = decide([1, 0, 1, 1], [0, 1, 1, 1]), decide([0, 0, 1, 1], [0, 1, 0, 1])
    selector = Fixed([first, second]).eval()
    alive = torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(selector.at(0, places(4, 2))(first, alive, 3).keep, first.bool())
    # three tokens of each image are left, and the decisions follow their original places
    positions = torch.tensor([[0, 2, 3], [1, 2, 3]])
    left = selector.at(1, positions)(torch.zeros(2, 3), alive[:, :3], 2)
    assert torch.equal(left.keep, torch.tensor([[False, True, True], [True, False, True]]))


def test_fixed_passes_float_decisions_on_with_their_gradient() -> None:
    decision = decide([1, 0, 1, 0]).requires_grad_()
    selection = Fixed([decision]).train().at(0, places(4))(torch.zeros(1, 4), decision > -1, None)
    assert torch.equal(selection.mask, decision)
    (gradient,) = torch.autograd.grad((selection.mask * torch.arange(4)).sum(), decision)
    assert torch.equal(gradient, torch.arange(4.0)[None])


def test_fixed_refuses_what_does_not_fit() -> None:
    decision = decide([1, 0, 1, 0])
    alive = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(InputError, match="1 stages, but stage 1"):
        Fixed([decision]).at(1, places(4))
    with pytest.raises(InputError, match="batch of 2"):
        Fixed([decision]).at(0, places(4, 2))
    with pytest.raises(InputError, match="does not cover"):
        Fixed([decision]).at(0, places(5))
    with pytest.raises(InputError, match=r"keep \[2\] tokens but the keep ratio asks for 3"):
        Fixed([decision]).eval().at(0, places(4))(torch.zeros(1, 4), alive, 3)
