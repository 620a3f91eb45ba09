"""What holds for every reducer: both executions agree, hidden rows and order do not matter, it exports, it counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dynavit.reducers import Merge, Merged, Reduced, Reducer, TokenSet

Make = Callable[..., Any]


class AsTensors(nn.Module):
    """A reducer between plain tensors, as torch.export and ONNX want it."""

    def __init__(self, reducer: Reducer) -> None:
        super().__init__()
        self.reducer = reducer

    def forward(self, tokens: Tensor, logits: Tensor, others: Tensor, other_logits: Tensor) -> tuple[Tensor, ...]:
        dropped = TokenSet(others, other_logits) if self.reducer.reads_dropped else None
        reduced = self.reducer(TokenSet(tokens, logits), dropped)
        return tuple(x for x in (reduced.tokens, reduced.made, reduced.target) if x is not None)


class MergeAsTensors(nn.Module):
    """Merge likewise, with the metric and sizes of its tokens."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.reducer, self.k = Merge(), k

    def forward(self, tokens: Tensor, metric: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        merged: Merged = self.reducer(tokens, metric, size, self.k)
        return torch.cat(merged.parts, dim=1), merged.size, merged.index, merged.target()


def call(reducer: Reducer, kept: TokenSet, dropped: TokenSet) -> Reduced:
    return reducer(kept, dropped if reducer.reads_dropped else None)


def inputs(batch: int = 2, k: int = 9, q: int = 4, dim: int = 10, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, k, dim), (batch, k), (batch, q, dim), (batch, q)]
    tokens, logits, others, other_logits = (torch.randn(s, generator=generator) for s in shapes)
    return tokens, logits, others, other_logits


def merge_inputs(batch: int = 2, n: int = 13, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    tokens, metric = (torch.randn(batch, n, dim, generator=generator) for dim in (10, 5))
    return tokens, metric, torch.randint(1, 4, (batch, n), generator=generator).float()


@pytest.mark.parametrize("seed", range(3))
def test_mask_form_equals_gather_form(name: str, seed: int, reducer_of: Make, stage_of: Make) -> None:
    reducer, stage = reducer_of(name), stage_of(seed)
    if not reducer.masks:
        assert name == "aggregate"  # the others all do
        return
    gathered, masked = call(reducer, *stage.gathered()), call(reducer, *stage.masked())
    index = stage.kept_index
    rows = masked.tokens.gather(1, index.unsqueeze(2).expand_as(gathered.tokens))
    torch.testing.assert_close(rows, gathered.tokens, rtol=1e-5, atol=1e-6)
    assert (gathered.made is None) == (masked.made is None) == (reducer.makes == 0)
    if gathered.made is not None:
        assert gathered.made.shape[1] == reducer.makes
        torch.testing.assert_close(masked.made, gathered.made, rtol=1e-5, atol=1e-6)
    if gathered.target is None:
        assert name == "drop"
        assert masked.target is None
        return
    n, k = stage.keep.shape[1], index.shape[1]
    made = torch.arange(n, n + reducer.makes).expand(len(index), -1)  # slots k + j are n + j in the mask form
    translated = torch.cat([index, made], dim=1).gather(1, gathered.target)
    assert torch.equal(masked.target.gather(1, stage.dropped_index), translated)
    assert gathered.target.dtype == torch.int64
    assert gathered.target.max() < k + reducer.makes


@pytest.mark.parametrize("value", [1e6, -1e6])
def test_hidden_rows_have_no_influence(name: str, value: float, reducer_of: Make, stage_of: Make) -> None:
    """Neither on values nor by gradients; rows of zero mask follow the others, as padding does."""
    reducer, stage = reducer_of(name), stage_of()
    results = []
    for junk in (value, 0.5):
        sets = []
        for part in stage.gathered():
            tokens = torch.cat([part.tokens, torch.full_like(part.tokens[:, :2], junk)], dim=1).requires_grad_()
            logits = torch.cat([part.logits, torch.full_like(part.logits[:, :2], junk)], dim=1).requires_grad_()
            mask = torch.cat([torch.ones_like(part.logits), torch.zeros_like(part.logits[:, :2])], dim=1)
            sets.append(TokenSet(tokens, logits, mask))
        kept, dropped = sets
        reduced = call(reducer, kept, dropped)
        rows = reduced.tokens if name == "aggregate" else reduced.tokens[:, :-2]
        everything = [rows, *([] if reduced.made is None else [reduced.made])]
        sum(x.square().sum() for x in everything).backward()
        for leaf in (kept.tokens, kept.logits, dropped.tokens, dropped.logits):
            if leaf.grad is not None:
                assert leaf.grad.isfinite().all()
                assert (leaf.grad[:, -2:] == 0).all()
        results.append(everything)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    plain = call(reducer, *stage.gathered())
    for a, b in zip(results[0], [plain.tokens, plain.made], strict=False):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_order_of_tokens_does_not_matter(name: str, reducer_of: Make, stage_of: Make) -> None:
    reducer, (kept, dropped) = reducer_of(name), stage_of().gathered()
    one = torch.randperm(kept.logits.shape[1], generator=torch.Generator().manual_seed(1))
    other = torch.randperm(dropped.logits.shape[1], generator=torch.Generator().manual_seed(2))
    before = call(reducer, kept, dropped)
    after = call(
        reducer,
        TokenSet(kept.tokens[:, one], kept.logits[:, one]),
        TokenSet(dropped.tokens[:, other], dropped.logits[:, other]),
    )
    expected = before.tokens if name == "aggregate" else before.tokens[:, one]
    torch.testing.assert_close(after.tokens, expected, rtol=1e-5, atol=1e-6)
    if before.made is not None:
        torch.testing.assert_close(after.made, before.made, rtol=1e-5, atol=1e-6)
    if before.target is not None:
        slots = torch.cat([one.argsort(), torch.arange(len(one), len(one) + reducer.makes)])
        moved = before.target if name == "aggregate" else slots[before.target]
        assert torch.equal(after.target, moved[:, other])


@pytest.mark.parametrize("form", ["gather", "mask"])
def test_nothing_dropped(name: str, form: str, reducer_of: Make, stage_of: Make) -> None:
    """Kept tokens stay, the made one is zero, and all gradients are finite."""
    reducer, (kept, dropped) = reducer_of(name), stage_of().gathered()
    tokens, logits = kept.tokens.clone().requires_grad_(), dropped.logits.clone().requires_grad_()
    if form == "gather":
        empty = TokenSet(dropped.tokens[:, :0], logits[:, :0])
    else:
        empty = TokenSet(dropped.tokens, logits, torch.zeros_like(logits))
    reduced = call(reducer, TokenSet(tokens, kept.logits), empty)
    loss = reduced.tokens.square().sum()
    if reduced.made is not None:
        assert (reduced.made == 0).all()
        loss = loss + (reduced.made + 1).square().sum()
    if name != "aggregate":
        assert torch.equal(reduced.tokens, tokens)
    loss.backward()
    assert tokens.grad.isfinite().all()
    assert tokens.grad.norm() > 0
    assert logits.grad is None or (logits.grad == 0).all()


def test_batch_equals_one_by_one(name: str, reducer_of: Make, stage_of: Make) -> None:
    reducer, (kept, dropped) = reducer_of(name), stage_of().gathered()
    together = call(reducer, kept, dropped)
    for i in range(len(kept.tokens)):
        row = slice(i, i + 1)
        alone = call(
            reducer,
            TokenSet(kept.tokens[row], kept.logits[row]),
            TokenSet(dropped.tokens[row], dropped.logits[row]),
        )
        for a, b in ((alone.tokens, together.tokens), (alone.made, together.made), (alone.target, together.target)):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b[row], rtol=1e-5, atol=1e-6)


def test_half_precision_tokens_keep_their_dtype(name: str, reducer_of: Make, stage_of: Make) -> None:
    """Weights are computed in fp32 from the same rounded tokens, so only the sums are rounded."""
    reducer, stage = reducer_of(name), stage_of()
    half = [TokenSet(s.tokens.bfloat16(), s.logits) for s in stage.gathered()]
    full = call(reducer, *(TokenSet(s.tokens.float(), s.logits) for s in half))
    low = call(reducer.bfloat16(), *half)
    assert low.tokens.dtype == torch.bfloat16
    torch.testing.assert_close(low.tokens.float(), full.tokens, rtol=0.02, atol=0.03)
    if low.made is not None:
        assert low.made.dtype == torch.bfloat16
        torch.testing.assert_close(low.made.float(), full.made, rtol=0.02, atol=0.03)
    if low.target is not None:
        assert torch.equal(low.target, full.target)


def test_autocast_leaves_the_weighting_alone(name: str, reducer_of: Make, stage_of: Make) -> None:
    reducer, sets = reducer_of(name), stage_of().gathered()
    plain = call(reducer, *sets)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = call(reducer, *sets)
    assert mixed.tokens.dtype == torch.float32
    if name == "aggregate":  # its network is an ordinary layer
        torch.testing.assert_close(mixed.tokens, plain.tokens, rtol=0.02, atol=0.02)
    else:
        assert torch.equal(mixed.tokens, plain.tokens)
    if plain.made is not None:
        assert torch.equal(mixed.made, plain.made)


def test_leaves_as_many_tokens_as_it_says(name: str, reducer_of: Make, stage_of: Make) -> None:
    reducer, (kept, dropped) = reducer_of(name), stage_of().gathered()
    reduced = call(reducer, kept, dropped)
    made = 0 if reduced.made is None else reduced.made.shape[1]
    assert made == reducer.makes
    assert reduced.tokens.shape[1] + made == reducer.leaves(kept.logits.shape[1])


@pytest.mark.parametrize(("k", "q"), [(9, 4), (5, 5), (7, 1)])
def test_macs_are_those_counted(name: str, k: int, q: int, reducer_of: Make) -> None:
    reducer, batch = reducer_of(name), 3
    tokens, logits, others, other_logits = inputs(batch, k, q)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        call(reducer, TokenSet(tokens, logits), TokenSet(others, other_logits))
    assert counter.get_total_flops() == 2 * batch * reducer.macs(k, q, tokens.shape[2])


def test_torch_export_with_a_dynamic_batch(name: str, reducer_of: Make) -> None:
    module = AsTensors(reducer_of(name).eval())
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(module, inputs(2), dynamic_shapes=(batch,) * 4)
    for size in (1, 2, 5):
        example = inputs(size, seed=size)
        for found, expected in zip(program.module()(*example), module(*example), strict=True):
            torch.testing.assert_close(found, expected)


def test_compiles_as_one_graph(name: str, reducer_of: Make) -> None:
    module = AsTensors(reducer_of(name))
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for found, expected in zip(compiled(*inputs()), module(*inputs()), strict=True):
        torch.testing.assert_close(found, expected)


def test_merge_exports_with_a_dynamic_batch() -> None:
    module = MergeAsTensors(9)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(module, merge_inputs(2), dynamic_shapes=(batch,) * 3)
    for size in (1, 2, 5):
        example = merge_inputs(size, seed=size)
        for found, expected in zip(program.module()(*example), module(*example), strict=True):
            torch.testing.assert_close(found, expected)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for found, expected in zip(compiled(*merge_inputs()), module(*merge_inputs()), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["drop", "fuse", "fuse_raw", "squeeze", "aggregate", "merge"])
def test_onnx(which: str, reducer_of: Make, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module = MergeAsTensors(9) if which == "merge" else AsTensors(reducer_of(which).eval())
    make = merge_inputs if which == "merge" else inputs
    names = [f"input{i}" for i in range(len(make()))]
    batch = {0: torch.export.Dim("batch")}
    path = tmp_path / "reducer.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's own internals
        torch.onnx.export(
            module, make(2), path, dynamo=True, input_names=names, dynamic_shapes=(batch,) * len(names), verbose=False
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    read = {node.name for node in session.get_inputs()}
    for size in (1, 5):
        example = make(size, seed=size)
        fed = {n: x.numpy() for n, x in zip(names, example, strict=True) if n in read}
        for found, expected in zip(session.run(None, fed), module(*example), strict=True):
            torch.testing.assert_close(torch.from_numpy(found), expected.detach(), rtol=1e-5, atol=1e-5)
