"""Bipartite soft matching: the published implementation's numbers, enumeration, conservation, bookkeeping."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dynavit.errors import InputError
from dynavit.reducers import Merge, Merged, TokenSet


def inputs(n: int, batch: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, metric and sizes."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, n, 6, generator=generator, dtype=torch.float64)
    metric = torch.randn(batch, n, 4, generator=generator, dtype=torch.float64)
    size = torch.randint(1, 5, (batch, n), generator=generator)
    return tokens.to(dtype), metric.to(dtype), size.to(dtype)


def merge(tokens: Tensor, metric: Tensor, size: Tensor, k: int) -> Merged:
    return Merge()(tokens, metric, size, k)


def tokens_of(merged: Merged) -> Tensor:
    return torch.cat(merged.parts, dim=1)


@pytest.mark.parametrize("r", [5, 16, 40])
def test_equals_the_published_matching(r: int, vectors: Path) -> None:
    """33 tokens with the class token first: ToMe protects it and puts it first; we never see it.

    ToMe's A are rows 0, 2, 4, .., so without row 0 they are our 1, 3, 5, ..; it clamps r = 40 to 16.
    """
    stored = {key: torch.from_numpy(value) for key, value in np.load(vectors / "tome_tiny.npz").items()}
    k = 32 - min(r, 16)
    merged = merge(
        stored["bsm_val"][:, 1:], stored["bsm_metric"][:, 1:], stored["bsm_size"][:, 1:, 0], k
    )  # rows of the patches
    expected, expected_size = stored[f"bsm_r{r}_x"], stored[f"bsm_r{r}_size"]
    assert torch.equal(expected[:, 0], stored["bsm_val"][:, 0])
    torch.testing.assert_close(tokens_of(merged), expected[:, 1:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged.size, expected_size[:, 1:, 0])
    # ToMe's inverse gives every patch the token that holds it
    spread = tokens_of(merged).gather(1, merged.target().unsqueeze(2).expand(-1, -1, 6))
    torch.testing.assert_close(spread, stored[f"bsm_r{r}_unmerged"][:, 1:], rtol=1e-5, atol=1e-6)


def best_by_enumeration(metric: Tensor, r: int) -> dict[int, int]:
    """Every choice of r tokens of A and a partner in B for each; the one of the highest total cosine."""
    n = len(metric)
    unit = metric.double() / metric.double().norm(dim=1, keepdim=True)
    cosine = (unit @ unit.T).tolist()
    best: tuple[float, dict[int, int]] = (-float("inf"), {})
    for sources in itertools.combinations(range(1, n, 2), r):
        for partners in itertools.product(range(0, n, 2), repeat=r):
            total = sum(cosine[a][b] for a, b in zip(sources, partners, strict=True))
            best = max(best, (total, dict(zip(sources, partners, strict=True))), key=lambda found: found[0])
    return best[1]


@pytest.mark.parametrize(("n", "r"), [(2, 1), (6, 2), (7, 3), (8, 1), (8, 4), (9, 3)])
def test_equals_enumeration(n: int, r: int) -> None:
    tokens, metric, size = inputs(n, dtype=torch.float64, seed=n)
    merged = merge(tokens, metric, size, n - r)
    for image in range(len(tokens)):
        partner = best_by_enumeration(metric[image], r)
        order = [a for a in range(1, n, 2) if a not in partner] + list(range(0, n, 2))
        assert merged.index[image].tolist() == order
        for slot, place in enumerate(order):
            members = [place] + [a for a, b in partner.items() if b == place]
            total = sum(size[image, i] for i in members)
            mean = sum(size[image, i] * tokens[image, i] for i in members) / total
            torch.testing.assert_close(tokens_of(merged)[image, slot], mean)
            assert merged.size[image, slot] == total
            assert all(merged.target()[image, i] == slot for i in members)


@pytest.mark.parametrize("n", [7, 12])
def test_conserves_size_and_weighted_sum(n: int) -> None:
    """Also over several stages, down to one token."""
    tokens, _, size = inputs(n)
    mass, total = (tokens * size.unsqueeze(2)).sum(dim=1), size.sum(dim=1)
    left = n
    while left > 1:
        left -= left // 2
        merged = merge(tokens, tokens, size, left)
        tokens, size = tokens_of(merged), merged.size
        torch.testing.assert_close((tokens * size.unsqueeze(2)).sum(dim=1), mass, rtol=1e-5, atol=1e-5)
        assert torch.equal(size.sum(dim=1), total)
    torch.testing.assert_close(tokens[:, 0] * total.unsqueeze(1), mass, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [7, 9, 11, 13])
def test_target_and_index_agree(k: int) -> None:
    """Sizes, tokens and places follow from ``target`` alone."""
    n = 13
    tokens, metric, size = inputs(n)
    merged = merge(tokens, metric, size, k)
    assert merged.target().shape == size.shape
    assert merged.target().dtype == merged.index.dtype == torch.int64
    held = torch.nn.functional.one_hot(merged.target(), k).to(size.dtype).transpose(1, 2)  # (B, k, n)
    assert (held.sum(dim=2) > 0).all()
    torch.testing.assert_close((held @ size.unsqueeze(2)).squeeze(2), merged.size)
    mean = held @ (tokens * size.unsqueeze(2)) / merged.size.unsqueeze(2)
    torch.testing.assert_close(tokens_of(merged), mean, rtol=1e-5, atol=1e-6)
    slots = torch.arange(k).expand_as(merged.index)
    assert torch.equal(merged.target().gather(1, merged.index), slots)  # who lends its place is held there
    single = held.sum(dim=2) == 1
    assert torch.equal(tokens_of(merged)[single], _rows(tokens, merged.index)[single])  # exactly
    assert all(len(set(row)) == k for row in merged.index.tolist())


def _rows(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_keeping_all_changes_the_order_only(n: int) -> None:
    tokens, metric, size = inputs(n)
    merged = merge(tokens, metric, size, n)
    assert merged.index.tolist() == [[*range(1, n, 2), *range(0, n, 2)]] * 3
    assert torch.equal(tokens_of(merged), _rows(tokens, merged.index))
    assert torch.equal(merged.size, size.gather(1, merged.index))
    assert torch.equal(merged.target().gather(1, merged.index), torch.arange(n).expand(3, n))


@pytest.mark.parametrize(("n", "k"), [(8, 3), (9, 4), (1, 0), (8, 9)])
def test_more_than_half_is_refused(n: int, k: int) -> None:
    with pytest.raises(InputError, match=rf"cannot leave {k} of {n} tokens: .*at most halves.*use more stages"):
        merge(*inputs(n), k)


def test_ties_go_to_the_lowest_index() -> None:
    """All keys alike: the first r of A merge, all into the first of B, whatever the batch."""
    tokens, _, size = inputs(10)
    metric = torch.ones(3, 10, 4)
    merged = merge(tokens, metric, size, 7)
    assert merged.index.tolist() == [[7, 9, 0, 2, 4, 6, 8]] * 3
    assert merged.target().tolist() == [[2, 2, 3, 2, 4, 2, 5, 0, 6, 1]] * 3
    again = merge(tokens, metric, size, 7)
    assert torch.equal(tokens_of(again), tokens_of(merged))


def test_images_do_not_mix() -> None:
    tokens, metric, size = inputs(11)
    together = merge(tokens, metric, size, 7)
    for i in range(3):
        alone = merge(tokens[i : i + 1], metric[i : i + 1], size[i : i + 1], 7)
        torch.testing.assert_close(tokens_of(alone), tokens_of(together)[i : i + 1])
        assert torch.equal(alone.size, together.size[i : i + 1])
        assert torch.equal(alone.index, together.index[i : i + 1])
        assert torch.equal(alone.target(), together.target()[i : i + 1])


def test_gradients_reach_tokens_and_not_the_metric() -> None:
    tokens, metric, size = inputs(9, dtype=torch.float64)
    tokens.requires_grad_()
    metric.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tokens_of(merge(x, metric, size, 6)), tokens)
    tokens_of(merge(tokens, metric, size, 6)).sum().backward()
    assert metric.grad is None
    torch.testing.assert_close(tokens.grad.sum(dim=(1, 2)), torch.full((3,), 36.0, dtype=torch.float64))


def test_half_precision() -> None:
    """Sizes and the choice are those of fp32."""
    tokens, metric, size = inputs(60)
    low = merge(tokens.bfloat16(), metric.bfloat16(), size, 40)
    full = merge(tokens.bfloat16().float(), metric.bfloat16().float(), size, 40)
    assert tokens_of(low).dtype == torch.bfloat16
    assert low.size.dtype == torch.float32
    assert torch.equal(low.target(), full.target())
    torch.testing.assert_close(tokens_of(low).float(), tokens_of(full), rtol=0.02, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = merge(tokens, metric, size, 40)
    plain = merge(tokens, metric, size, 40)
    assert torch.equal(tokens_of(mixed), tokens_of(plain))
    assert torch.equal(mixed.target(), plain.target())


@pytest.mark.parametrize(("n", "k"), [(12, 9), (13, 7), (13, 13)])
def test_macs_are_those_counted(n: int, k: int) -> None:
    tokens, metric, size = inputs(n)
    counter = FlopCounterMode(display=False)
    with counter:
        merge(tokens, metric, size, k)
    assert counter.get_total_flops() == 2 * 3 * Merge().macs(k, n - k, 6, metric_dim=4)


def test_exports_with_a_dynamic_number_of_tokens() -> None:
    class Halve(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reducer = Merge()

        def forward(self, tokens: Tensor, metric: Tensor, size: Tensor) -> tuple[Tensor, ...]:
            n = tokens.shape[1]
            merged: Merged = self.reducer(tokens, metric, size, n * 700 // 1000)
            return tokens_of(merged), merged.size, merged.index, merged.target()

    module = Halve()
    dynamic = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(module, inputs(20), dynamic_shapes=(dynamic,) * 3)
    for n in (20, 31, 50):
        example = inputs(n, batch=2)
        for found, expected in zip(program.module()(*example), module(*example), strict=True):
            torch.testing.assert_close(found, expected)


def test_compares_half_precision_keys_in_fp32() -> None:
    """Cosines of 0.9995 and 0.9999 are the same number in bf16."""
    metric = torch.tensor([[[1.0, 1 / 32], [1.0, 0.0], [1.0, 1 / 64]]]).bfloat16()
    merged = merge(torch.zeros(1, 3, 2), metric, torch.ones(1, 3), 2)
    assert merged.target().tolist() == [[0, 1, 1]]


def test_reads_no_token_sets() -> None:
    """Its call differs from the other reducers': mixing them up fails at once."""
    tokens, _, _ = inputs(4)
    part = TokenSet(tokens, tokens[..., 0])
    with pytest.raises(TypeError):
        Merge()(part, part)
