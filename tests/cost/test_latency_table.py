"""The latency of a block by token count: what is timed, and what is made of the times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import dynavit
from dynavit import InputError
from dynavit.cost import latency, measure
from dynavit.cost.latency import block_latency

SMALL = {"img_size": 64, "embed_dim": 32, "num_heads": 2, "depth": 4}  # 16 patches


class Stopwatch:
    """Stands in for measure: runs every variant once and gives the times it was told to."""

    def __init__(self, seconds: Callable[[int], list[float]]) -> None:
        self.seconds = seconds
        self.shapes: dict[int, tuple[int, ...]] = {}

    def __call__(self, variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
        self.shapes = {int(name): tuple(run().shape) for name, run in variants.items()}
        return {name: self.seconds(int(name)) for name in variants}


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], list[float]]) -> Stopwatch:
    stopwatch = Stopwatch(seconds)
    monkeypatch.setattr(latency, "measure", stopwatch)
    return stopwatch


def test_medians_per_image_joined_by_straight_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch = timed(monkeypatch, lambda n: [1e4, 8.0 + n * n, 0.0])  # the outer ones are disturbances
    model = dynavit.create_model("vit_tiny_patch16_224", **SMALL)
    table = block_latency(model, counts=[4, 8], batch_size=2)
    assert stopwatch.shapes == {n: (2, 1 + n, 32) for n in (0, 4, 8, 16)}
    assert table.shape == (17,)
    for n, seconds in ((0, 8), (4, 24), (6, (24 + 72) / 2), (8, 72), (12, (72 + 264) / 2), (16, 264)):
        assert float(table[n]) == pytest.approx(seconds / 2)


def test_more_tokens_never_cost_less(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda n: [{0: 1.0, 4: 5.0, 8: 3.0, 16: 9.0}[n]])
    table = block_latency(dynavit.create_model("vit_tiny_patch16_224", **SMALL), counts=[4, 8], batch_size=1)
    assert bool((table.diff() >= 0).all())
    assert table[[4, 8, 12, 16]].tolist() == [5.0, 5.0, 7.0, 9.0]


def test_every_family(family: str, model_of: Callable[..., dynavit.PrunedViT], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those without a prefix token, whose blocks cannot run on nothing."""
    stopwatch = timed(monkeypatch, lambda n: [float(n)])
    model = model_of(family)
    table = block_latency(model, batch_size=1)
    patches = model.adapter.grid_size[0] * model.adapter.grid_size[1]
    assert table.shape == (patches + 1,)
    assert min(stopwatch.shapes) == (0 if model.num_prefix_tokens else 1)
    assert max(stopwatch.shapes) == patches
    assert table[0] == min(stopwatch.shapes)
    torch.testing.assert_close(table[1:], torch.arange(1, patches + 1).float())


def test_measured_times_grow_and_the_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    short = lambda variants, rounds: measure(variants, rounds, min_seconds=0.02)  # noqa: E731
    monkeypatch.setattr(latency, "measure", short)
    model = dynavit.create_model("vit_tiny_patch16_224", depth=2, num_classes=3)  # 196 patches
    model.train()
    model.backbone.norm.eval()
    modes = [part.training for part in model.modules()]
    table = block_latency(model, batch_size=2, rounds=3)
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert bool((table.diff() >= 0).all())
    assert float(table[196]) > 2 * float(table[49]) > 0


def test_bad_input() -> None:
    model = dynavit.create_model("vit_tiny_patch16_224", **SMALL)
    with pytest.raises(InputError, match="17 is outside 0 to 16"):
        block_latency(model, counts=[4, 17])
    with pytest.raises(InputError, match="batch_size=0"):
        block_latency(model, batch_size=0)
    with pytest.raises(InputError, match="rounds=0"):
        block_latency(model, rounds=0)
