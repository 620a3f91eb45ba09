"""Squeezing against loops written from the paper (TPS, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dynavit.reducers import Squeeze, TokenSet

Make = Callable[..., Any]


def by_loops(kept: Tensor, dropped: Tensor) -> tuple[list[list[list[float]]], list[list[int]]]:
    """Each image, each dropped token, each coordinate, in plain Python numbers."""

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    results, targets = [], []
    for xs, ys in zip(kept.tolist(), dropped.tolist(), strict=True):
        cosines = [[cosine(y, x) for x in xs] for y in ys]
        target = [row.index(max(row)) for row in cosines]
        result = []
        for j, x in enumerate(xs):
            guests = [(math.exp(cosines[i][j]), y) for i, y in enumerate(ys) if target[i] == j]
            total = math.e + sum(weight for weight, _ in guests)
            result.append([(math.e * x[c] + sum(w * y[c] for w, y in guests)) / total for c in range(len(x))])
        results.append(result)
        targets.append(target)
    return results, targets


def squeeze(kept: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
    reduced = Squeeze()(TokenSet(kept, kept[..., 0]), TokenSet(dropped, dropped[..., 0]))
    assert reduced.made is None
    assert reduced.target is not None
    return reduced.tokens, reduced.target


@pytest.mark.parametrize(("k", "q"), [(5, 4), (3, 12), (1, 3), (6, 1)])
def test_equals_the_loops(k: int, q: int) -> None:
    generator = torch.Generator().manual_seed(k)
    kept, dropped = (torch.randn(4, m, 5, generator=generator, dtype=torch.float64) for m in (k, q))
    tokens, target = squeeze(kept, dropped)
    expected, expected_target = by_loops(kept, dropped)
    assert target.tolist() == expected_target
    torch.testing.assert_close(tokens, torch.tensor(expected, dtype=torch.float64))
    single, _ = squeeze(kept.float(), dropped.float())
    torch.testing.assert_close(single, tokens.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_go_to_one_and_the_others_stay_exactly(dtype: torch.dtype) -> None:
    kept = torch.tensor([[[3.0, 0.1], [0.1, 7.3], [-1.7, -1.1]]]).to(dtype)
    dropped = torch.tensor([[[0.9, 0.0], [2.0, 0.3], [0.0, 0.4]]]).to(dtype)
    tokens, target = squeeze(kept, dropped)
    assert target.tolist() == [[0, 0, 1]]
    assert torch.equal(tokens[:, 2], kept[:, 2])
    assert not torch.equal(tokens[:, :2], kept[:, :2])
    expected, _ = by_loops(kept.double(), dropped.double())
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.01}
    torch.testing.assert_close(tokens.double(), torch.tensor(expected, dtype=torch.float64), **close)


def test_equal_cosines_go_to_the_first() -> None:
    kept = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [4.0, 0.0]]])
    _, target = squeeze(kept, torch.tensor([[[1.0, 0.0], [0.0, -1.0]]]))
    assert target.tolist() == [[1, 1]]


def test_compares_half_precision_tokens_in_fp32() -> None:
    """Cosines of 0.9995 and 0.9999 are the same number in bf16."""
    kept = torch.tensor([[[1.0, 1 / 32], [1.0, 1 / 64]]]).bfloat16()
    _, target = squeeze(kept, torch.tensor([[[1.0, 0.0]]]).bfloat16())
    assert target.tolist() == [[1]]


def test_is_a_mean_of_its_members() -> None:
    """Tokens that are all alike stay so, however many are mixed."""
    token = torch.randn(1, 1, 7, generator=torch.Generator().manual_seed(0))
    tokens, _ = squeeze(token.expand(2, 4, 7), token.expand(2, 9, 7))
    torch.testing.assert_close(tokens, token.expand(2, 4, 7))


def test_gradients_match_finite_differences(stage_of: Make) -> None:
    stage = stage_of(dtype=torch.float64)
    kept, dropped = stage.gathered()

    def result(x: Tensor, y: Tensor) -> Tensor:
        return squeeze(x, y)[0]

    leaves = kept.tokens.requires_grad_(), dropped.tokens.requires_grad_()
    assert torch.autograd.gradcheck(result, leaves)
    gradients = torch.autograd.grad(result(*leaves).square().sum(), leaves)
    assert all((gradient.abs().sum(dim=2) > 0).all() for gradient in gradients)


def test_zero_tokens_are_harmless() -> None:
    kept = torch.zeros(1, 3, 4, requires_grad=True)
    dropped = torch.zeros(1, 2, 4, requires_grad=True)
    tokens, _ = squeeze(kept, dropped)
    tokens.sum().backward()
    for leaf in (kept, dropped):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().max() < 10
