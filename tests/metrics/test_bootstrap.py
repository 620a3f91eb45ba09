"""The bootstrap against a plain loop, against theory, and how often its interval holds the truth."""

import numpy as np
import pytest
import torch

from dynavit import InputError
from dynavit.metrics.bootstrap import paired_bootstrap


def queries(
    random: np.random.Generator, groups: int, difference: float = 0.0, shared: float = 1.0, noise: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries of identities of 1 to 6 queries, where models differ by identity more than by query."""
    identity = np.repeat(np.arange(groups) * 3 + 5, random.integers(1, 7, groups))
    hardness = 10 * random.normal(size=groups)[(identity - 5) // 3]  # the same for both models
    liking = shared * random.normal(size=groups)[(identity - 5) // 3]
    a = 50 + hardness + noise * random.normal(size=len(identity))
    b = 50 + hardness + noise * random.normal(size=len(identity)) + liking + difference
    order = random.permutation(len(identity))
    return a[order], b[order], identity[order]


def test_a_plain_loop_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, groups = queries(np.random.default_rng(0), 20)
    random, means = np.random.default_rng(7), []
    names = np.unique(groups)
    for _ in range(500):
        chosen = [names[place] for place in random.integers(len(names), size=len(names))]
        of_a = np.concatenate([a[groups == name] for name in chosen])
        of_b = np.concatenate([b[groups == name] for name in chosen])
        means.append(of_b.mean() - of_a.mean())
    expected = (b.mean() - a.mean(), *np.quantile(means, [0.05, 0.95]))
    assert paired_bootstrap(a, b, groups, samples=500, seed=7, level=0.9) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr("dynavit.metrics.bootstrap._BLOCK", 70)  # three samples at a time
    assert paired_bootstrap(a, b, groups, samples=500, seed=7, level=0.9) == pytest.approx(expected, abs=1e-12)


def test_few_groups_can_be_enumerated() -> None:
    # two groups of one query: differences 0, 1/2, 1/2 and 1 with a quarter each
    assert paired_bootstrap([0, 0], [0, 1], [1, 2], level=0.4) == (0.5, 0.5, 0.5)
    assert paired_bootstrap([0, 0], [0, 1], [1, 2], level=0.6) == (0.5, 0.0, 1.0)
    # one query of difference 1 beside three of difference 0: a drawn mean is over queries, not identities
    assert paired_bootstrap([0] * 4, [1, 0, 0, 0], [1, 2, 2, 2], level=0.4) == (0.25, 0.25, 0.25)


def test_tensors_and_booleans() -> None:
    a, b = torch.tensor([True, False, False, True]), torch.tensor([True, True, False, True])
    groups = torch.tensor([1, 2, 3, 4])
    assert paired_bootstrap(a, b, groups)[0] == 0.25
    assert paired_bootstrap(b, a, groups)[0] == -0.25
    assert paired_bootstrap(a, b, groups) == paired_bootstrap(a.tolist(), b.float(), ["p", "q", "r", "s"])


def test_the_seed_decides() -> None:
    a, b, groups = queries(np.random.default_rng(1), 30)
    assert paired_bootstrap(a, b, groups, seed=1) == paired_bootstrap(a, b, groups, seed=1)
    assert paired_bootstrap(a, b, groups, seed=1) != paired_bootstrap(a, b, groups, seed=2)


def test_pairing_cancels_what_is_hard_for_both() -> None:
    a, b, groups = queries(np.random.default_rng(2), 60, difference=1.0, shared=0.1, noise=0.1)
    mean, low, high = paired_bootstrap(a, b, groups)
    assert low < mean < high
    assert high - low < 0.5  # identities differ by 10
    shift = np.random.default_rng(0).permutation(len(b))
    unpaired = paired_bootstrap(a, b[shift], groups)  # what another order of queries would say
    assert unpaired[2] - unpaired[1] > 2


def coverage(of_groups: bool, rounds: int = 300) -> float:
    random, hits = np.random.default_rng(3), 0
    for number in range(rounds):
        a, b, groups = queries(random, 60, difference=2.0, shared=3.0)
        _, low, high = paired_bootstrap(a, b, groups if of_groups else np.arange(len(a)), samples=400, seed=number)
        hits += low <= 2.0 <= high
    return hits / rounds


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    assert 0.90 <= coverage(of_groups=True) <= 0.98  # 0.95 with a standard error of 0.013
    assert coverage(of_groups=False) < 0.85  # drawing queries one by one is too sure of itself


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"of one length, not \(2,\), \(3,\) and \(2,\)"):
        paired_bootstrap([1, 2], [1, 2, 3], [1, 2])
    with pytest.raises(InputError, match="of one length"):
        paired_bootstrap([[1, 2]], [[1, 2]], [[1, 2]])
    with pytest.raises(InputError, match="not finite"):
        paired_bootstrap([1, float("nan")], [1, 2], [1, 2])
    with pytest.raises(InputError, match="two or more; groups holds 1"):
        paired_bootstrap([1, 2], [1, 2], [5, 5])
    with pytest.raises(InputError, match="groups holds 0"):
        paired_bootstrap([], [], [])
    with pytest.raises(InputError, match="level=1"):
        paired_bootstrap([1, 2], [1, 2], [1, 2], level=1)
    with pytest.raises(InputError, match="samples=0"):
        paired_bootstrap([1, 2], [1, 2], [1, 2], samples=0)
