"""Scored merging: loops written from the formula, conservation, exact gradients, memory, half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dynavit.reducers import MergeNearest, Reduced, TokenSet

Make = Callable[..., Any]


def sized(stage: Any, seed: int = 0) -> tuple[TokenSet, TokenSet]:
    """Kept and dropped tokens of a stage that stand for 1 to 4 patches each."""
    generator = torch.Generator().manual_seed(seed)

    def counted(part: TokenSet) -> TokenSet:
        size = torch.randint(1, 5, part.logits.shape, generator=generator).to(part.logits.dtype)
        return TokenSet(part.tokens, part.logits, part.mask, size)

    kept, dropped = stage.gathered()
    return counted(kept), counted(dropped)


def merge(kept: TokenSet, dropped: TokenSet, reducer: MergeNearest | None = None) -> tuple[Tensor, Tensor, Tensor]:
    reduced: Reduced = (reducer or MergeNearest())(kept, dropped)
    assert reduced.made is None
    assert reduced.size is not None
    assert reduced.target is not None
    return reduced.tokens, reduced.size, reduced.target


def test_equals_the_loops(stage_of: Make) -> None:
    kept, dropped = sized(stage_of(dtype=torch.float64))
    tokens, size, target = merge(kept, dropped)
    for image, (xs, ys) in enumerate(zip(kept.tokens, dropped.tokens, strict=True)):
        nearest = [max(range(len(xs)), key=lambda j: torch.cosine_similarity(y, xs[j], dim=0)) for y in ys]
        assert target[image].tolist() == nearest
        for j, x in enumerate(xs):
            members = [(kept.size[image, j], x)]
            members += [(dropped.size[image, i], y) for i, y in enumerate(ys) if nearest[i] == j]
            total = sum(weight for weight, _ in members)
            assert size[image, j] == total
            torch.testing.assert_close(tokens[image, j], sum(weight * token for weight, token in members) / total)


def test_sizes_and_sized_sums_are_conserved(stage_of: Make) -> None:
    """Whatever goes where; a token that receives nothing stays exactly as it is."""
    kept, dropped = sized(stage_of(dtype=torch.float64))
    tokens, size, target = merge(kept, dropped)
    assert torch.equal(size.sum(dim=1), kept.size.sum(dim=1) + dropped.size.sum(dim=1))
    before = sum((part.size.unsqueeze(2) * part.tokens).sum(dim=1) for part in (kept, dropped))
    torch.testing.assert_close((size.unsqueeze(2) * tokens).sum(dim=1), before)
    alone = torch.ones_like(size, dtype=torch.bool).scatter(1, target, False)
    assert alone.any()
    assert torch.equal(tokens[alone], kept.tokens[alone])
    assert torch.equal(size[alone], kept.size[alone])


def test_without_sizes_every_token_is_one_patch(stage_of: Make) -> None:
    kept, dropped = stage_of().gathered()
    counted = (TokenSet(part.tokens, part.logits, size=torch.ones_like(part.logits)) for part in (kept, dropped))
    for found, expected in zip(merge(kept, dropped), merge(*counted), strict=True):
        assert torch.equal(found, expected)


def test_only_similarity_says_where_tokens_go(stage_of: Make) -> None:
    kept, dropped = sized(stage_of())
    others = (TokenSet(part.tokens, -3 * part.logits, part.mask, part.size) for part in (kept, dropped))
    for found, expected in zip(merge(*others), merge(kept, dropped), strict=True):
        assert torch.equal(found, expected)


def test_gradients_at_fixed_partners_match_finite_differences(stage_of: Make) -> None:
    kept, dropped = sized(stage_of(dtype=torch.float64))
    direction = torch.randn(kept.tokens.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        tokens, _, _ = merge(TokenSet(x, kept.logits, size=kept.size), TokenSet(y, dropped.logits, size=dropped.size))
        return (tokens.sin() * direction).sum()

    leaves = kept.tokens.requires_grad_(), dropped.tokens.requires_grad_()
    target = merge(kept, dropped)[2]
    gradients = torch.autograd.grad(loss(*leaves), leaves)
    step = 1e-5
    with torch.no_grad():
        for leaf, gradient in zip(leaves, gradients, strict=True):
            for place in [(0, 0, 0), (1, 2, 3), (2, 4, 9)]:
                values = []
                for sign in (1, -1):
                    leaf[place] += sign * step
                    assert torch.equal(merge(kept, dropped)[2], target)
                    values.append(loss(*leaves))
                    leaf[place] -= sign * step
                assert abs((values[0] - values[1]) / (2 * step) - gradient[place]) < 1e-7


def test_half_precision_counts_exactly(stage_of: Make) -> None:
    """Sizes stay in fp32: bf16 knows no 257."""
    kept, dropped = stage_of().gathered()
    large = TokenSet(kept.tokens.bfloat16(), kept.logits, size=torch.full_like(kept.logits, 256.0))
    tokens, size, _ = merge(large, TokenSet(dropped.tokens.bfloat16(), dropped.logits))
    assert tokens.dtype == torch.bfloat16
    assert size.dtype == torch.float32
    assert (size.sum(dim=1) == 256 * kept.logits.shape[1] + dropped.logits.shape[1]).all()


# Weighted by scores, too


def weighted(beta: float) -> MergeNearest:
    reducer = MergeNearest(weighted=True).double()
    assert reducer.beta is not None
    assert (reducer.beta == 0).all()
    reducer.beta.data.fill_(beta)
    return reducer


@pytest.mark.parametrize("beta", [0.0, 0.7, -1.3])
def test_weighted_equals_the_loops(beta: float, stage_of: Make) -> None:
    """Means by ``size * exp(beta logit)``, sizes and partners as without; at 0 it is the plain one, bit for bit."""
    kept, dropped = sized(stage_of(dtype=torch.float64))
    plain, *where = merge(kept, dropped)
    tokens, size, target = merge(kept, dropped, weighted(beta))
    assert all(map(torch.equal, (size, target), where))
    assert torch.equal(tokens, plain) == (beta == 0)
    for image in range(len(tokens)):
        for j in range(tokens.shape[1]):
            members = [(kept.size[image, j], kept.logits[image, j], kept.tokens[image, j])]
            members += [
                (dropped.size[image, i], dropped.logits[image, i], dropped.tokens[image, i])
                for i in range(target.shape[1])
                if target[image, i] == j
            ]
            weights = [s * torch.exp(beta * a) for s, a, _ in members]
            mean = sum(w * x for w, (_, _, x) in zip(weights, members, strict=True)) / sum(weights)
            torch.testing.assert_close(tokens[image, j], mean)


def shifted(part: TokenSet, by: float) -> TokenSet:
    return TokenSet(part.tokens, part.logits + by, part.mask, part.size)


def test_a_constant_in_all_logits_changes_nothing(stage_of: Make) -> None:
    """However large, and even where weights themselves would overflow."""
    kept, dropped = sized(stage_of(dtype=torch.float64))
    for by in (3.0, -1e4, 1e4):
        found = merge(shifted(kept, by), shifted(dropped, by), weighted(0.7))[0]
        torch.testing.assert_close(found, merge(kept, dropped, weighted(0.7))[0], rtol=1e-10, atol=1e-10)
    tokens, _, target = merge(kept, shifted(dropped, 1e4), weighted(1.0))  # of the kept ones nothing is left
    assert tokens.isfinite().all()
    alone = torch.ones_like(tokens[..., 0], dtype=torch.bool).scatter(1, target, False)
    assert torch.equal(tokens[alone], kept.tokens[alone])


def test_weighted_gradients_at_fixed_partners_match_finite_differences(stage_of: Make) -> None:
    """Of tokens, logits and beta; that of logits sums to zero in each group, and is zero for who is in none."""
    kept, dropped = sized(stage_of(dtype=torch.float64))
    reducer = weighted(0.7)
    direction = torch.randn(kept.tokens.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(x: Tensor, y: Tensor, a: Tensor, b: Tensor, _: Tensor) -> Tensor:
        tokens, _, _ = merge(TokenSet(x, a, size=kept.size), TokenSet(y, b, size=dropped.size), reducer)
        return (tokens.sin() * direction).sum()

    leaves = [*(x.requires_grad_() for x in (kept.tokens, dropped.tokens, kept.logits, dropped.logits)), reducer.beta]
    target = merge(kept, dropped, reducer)[2]
    gradients = torch.autograd.grad(loss(*leaves), leaves)
    step = 1e-5
    with torch.no_grad():
        for leaf, gradient in zip(leaves, gradients, strict=True):
            for flat in range(0, leaf.numel(), max(1, leaf.numel() // 7)):
                values = []
                for sign in (1, -1):
                    leaf.view(-1)[flat] += sign * step
                    assert torch.equal(merge(kept, dropped)[2], target)
                    values.append(loss(*leaves))
                    leaf.view(-1)[flat] -= sign * step
                assert abs((values[0] - values[1]) / (2 * step) - gradient.reshape(-1)[flat]) < 1e-7
    of_kept, of_dropped = gradients[2:4]
    of_groups = of_kept.scatter_add(1, target, of_dropped)
    torch.testing.assert_close(of_groups, torch.zeros_like(of_groups), rtol=0, atol=1e-12)
    alone = torch.ones_like(of_kept, dtype=torch.bool).scatter(1, target, False)
    assert (of_kept[alone] == 0).all()
    assert (of_kept[~alone] != 0).all()
    assert (of_dropped != 0).all()


def test_at_first_beta_learns_and_logits_do_not(stage_of: Make) -> None:
    kept, dropped = sized(stage_of(dtype=torch.float64))
    dropped.logits.requires_grad_()
    reducer = weighted(0.0)
    merge(kept, dropped, reducer)[0].square().sum().backward()
    assert (reducer.beta.grad != 0).all()
    assert (dropped.logits.grad == 0).all()


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("ratio", [0.9, 0.5])
def test_memory_at_4096_tokens(ratio: float) -> None:
    """No table but that of dropped and kept tokens: at most a quarter of all pairs."""
    n, dim = 4096, 16
    k = int(n * ratio)
    tokens = torch.randn(1, n, dim, generator=torch.Generator().manual_seed(0))
    kept, dropped = (TokenSet(part, part[..., 0]) for part in tokens.split([k, n - k], dim=1))
    with Largest() as largest:
        merge(kept, dropped)
    assert largest.elements == k * (n - k) <= n * n / 4
