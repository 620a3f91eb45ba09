"""Pruning images of different sizes in one batch: every image keeps its share of its own patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import dynavit
from dynavit import InputError, PrunedViT
from dynavit.functional import num_keep
from tests.adapters.test_naflex import GRIDS, batch_of, make
from tests.conftest import randomise

LENGTHS = [rows * columns for rows, columns in GRIDS]
METHODS: dict[str, dict[str, Any]] = {
    "drop": {},
    "fuse": {"reducer": "fuse"},
    "squeeze": {"reducer": "squeeze", "scorer": "attention_received", "placement": "inside"},
    "current": {"reducer": "fuse", "scorer": "key_norm", "placement": "inside", "count_rule": "current"},
    "aggregate": {"reducer": {"name": "aggregate", "tokens": 3}},
}
KINDS = ["gap", "siglip", "axial", "mixed"]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_method = pytest.mark.parametrize("method", list(METHODS))


def pruned(kind: str, method: str = "drop", **options: Any) -> PrunedViT:
    common = {"stages": (1, 2, 3), "keep_ratio": 0.6, "scorer": "mlp", "reducer": "drop"}
    settings = {**common, **METHODS[method], **options}
    model = dynavit.prune(make(kind), **settings).eval()
    randomise(model.scorers)
    randomise(model.reducer)
    return model


def alone(batch: dict[str, Tensor], image: int) -> dict[str, Tensor]:
    """One image of the batch without padding."""
    return {name: value[image : image + 1, : LENGTHS[image]] for name, value in batch.items()}


@torch.no_grad()
@each_method
@each_kind
def test_batch_equals_its_images_one_by_one(kind: str, method: str) -> None:
    model, batch = pruned(kind, method), batch_of()
    logits, trace = model(batch, return_trace=True)
    for image in range(len(GRIDS)):
        own, own_trace = model(alone(batch, image), return_trace=True)
        torch.testing.assert_close(own[0], logits[image], rtol=1e-4, atol=1e-4)
        for stage, mask in enumerate([stage.kept for stage in trace.stages]):
            assert torch.equal(mask[image, : LENGTHS[image]], own_trace.stages[stage].kept[0])
            assert not mask[image, LENGTHS[image] :].any()


@torch.no_grad()
@each_kind
def test_ratios_are_of_each_image_s_own_patches(kind: str) -> None:
    model = pruned(kind)
    _, trace = model(batch_of(), return_trace=True)
    for ratio, counts in zip(model.keep_ratios, trace.counts, strict=True):
        assert counts.tolist() == [num_keep(length, ratio) for length in LENGTHS]
    assert trace.choices[0].expected.max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("method", ["drop", "fuse", "squeeze", "current"])
@each_kind
def test_mask_equals_gather(kind: str, method: str) -> None:
    model, batch = pruned(kind, method), batch_of()
    gathered, trace = model(batch, return_trace=True)
    model.execution = "mask"
    masked, other = model(batch, return_trace=True)
    torch.testing.assert_close(masked, gathered, rtol=1e-4, atol=1e-4)
    assert all(map(torch.equal, [stage.kept for stage in trace.stages], [stage.kept for stage in other.stages]))


@torch.no_grad()
@each_kind
def test_at_ratio_one_and_without_stages_it_is_timm_s(kind: str) -> None:
    batch = batch_of()
    for model in (pruned(kind, keep_ratio=1.0), pruned(kind, stages=())):
        torch.testing.assert_close(model(batch), model.backbone(batch), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@each_kind
def test_what_stands_in_the_padding_does_not_matter(kind: str) -> None:
    model, batch = pruned(kind), batch_of()
    logits = model(batch)
    padding = ~batch["patch_valid"]
    batch["patches"] = batch["patches"].masked_fill(padding.unsqueeze(-1), 1e6)
    assert torch.equal(model(batch), logits)


@each_method
@each_kind
def test_training_reaches_every_predictor(kind: str, method: str) -> None:
    model, batch = pruned(kind, method).train(), batch_of()
    logits, trace = model(batch, return_trace=True)
    assert trace.counts[0].tolist() == [int(count) for count in model.stage_counts(torch.tensor(LENGTHS))[0]]
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    for predictor in model.scorers:
        for name, parameter in predictor.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all()
    norms = [sum(float(p.grad.norm()) for p in predictor.parameters()) for predictor in model.scorers]
    assert min(norms, default=1.0) > 0 or method in ("squeeze", "current")


def test_what_needs_equal_images_says_so() -> None:
    with pytest.raises(InputError, match="needs images of one size"), torch.no_grad():
        pruned("gap", reducer="merge")(batch_of())
    with pytest.raises(InputError, match="on no common grid"):
        pruned("gap").forward_intermediates(batch_of())
    grids = ((3, 4), (4, 3))
    assert pruned("gap", reducer="merge")(batch_of(grids)).shape == (2, 7)  # as many patches


@torch.no_grad()
def test_thresholds_and_padding_together() -> None:
    model, batch = pruned("mixed", "fuse"), batch_of()
    model.set_thresholds([0.3, 0.0, 0.0])
    logits = model(batch)
    for image in range(len(GRIDS)):
        torch.testing.assert_close(model(alone(batch, image))[0], logits[image], rtol=1e-4, atol=1e-4)
