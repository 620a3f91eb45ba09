"""Parity with the published EViT: its own code's outputs, in vectors/README terms.

youweiliang/evit at commit 5ca95a7, random weights, 6 blocks of width 48; in blocks 2, 3 and 4 the tokens that the
class token attends to least go, between attention and MLP, 30 % of those present each time.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dynavit
from dynavit import PrunedViT

EVIT = {
    "stages": (2, 3, 4),
    "keep_ratio": 0.7,
    "scorer": "class_attention",
    "placement": "inside",
    "count_rule": "current",
    "selector": {"name": "topk", "gradient": "none"},
}
REDUCERS = {"fuse": {"name": "fuse", "normalize": False}, "drop": "drop"}

Make = Callable[..., PrunedViT]


@pytest.fixture(scope="module")
def v(published: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return published("evit_tiny")


@torch.no_grad()
@pytest.mark.parametrize("form", list(REDUCERS))
@pytest.mark.parametrize("execution", ["gather", "mask"])
def test_same_logits_and_tokens(
    form: str, execution: str, v: dict[str, Tensor], with_published_weights: Make, published_images: Tensor
) -> None:
    model = with_published_weights(reducer=REDUCERS[form], **EVIT)
    model.execution = execution  # type: ignore[assignment]
    logits, trace = model(published_images, return_trace=True)
    torch.testing.assert_close(logits, v[f"{form}_logits"], rtol=1e-4, atol=1e-5)
    present = v[f"{form}_left_tokens"][[2, 3, 4]].tolist()
    assert [lengths.tolist() for lengths in [stage.length for stage in trace.stages]] == [
        [number] * 2 for number in present
    ]


@torch.no_grad()
@pytest.mark.parametrize("form", list(REDUCERS))
def test_same_patches_kept_at_every_stage(
    form: str, v: dict[str, Tensor], with_published_weights: Make, published_images: Tensor
) -> None:
    model = with_published_weights(reducer=REDUCERS[form], **EVIT)
    _, trace = model(published_images, return_trace=True)
    for stage, mask in enumerate([stage.kept for stage in trace.stages]):
        theirs = v[f"{form}_orig_{stage}"].long()
        for image, mine in enumerate(mask):
            assert set(mine.nonzero().flatten().tolist()) == {p for p in theirs[image].tolist() if p >= 0}
    scores = trace.choices[0].logits.exp()
    torch.testing.assert_close(scores, v[f"{form}_cls_attn_0"], rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_same_class_token_after_every_block(
    v: dict[str, Tensor], with_published_weights: Make, published_images: Tensor
) -> None:
    model = with_published_weights(reducer=REDUCERS["fuse"], **EVIT)
    prefixes = [
        prefix[:, 0]
        for _, prefix in model.forward_intermediates(
            published_images, return_prefix_tokens=True, intermediates_only=True
        )
    ]
    torch.testing.assert_close(torch.stack(prefixes), v["fuse_block_out_cls"], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_would_notice_normalised_weights_or_another_place(
    v: dict[str, Tensor], with_published_weights: Make, published_images: Tensor
) -> None:
    """The negative control: close cousins of EViT give other numbers."""
    for change in ({"reducer": "fuse"}, {"reducer": REDUCERS["fuse"], "placement": "before"}):
        model = with_published_weights(**{**EVIT, **change})
        assert not torch.allclose(model(published_images), v["fuse_logits"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ratio", [0.9, 0.8, 0.7, 0.6, 0.5])
@pytest.mark.parametrize("form", list(REDUCERS))
def test_multiply_accumulates_are_the_published_ones(form: str, ratio: float) -> None:
    """Closed forms of DeiT-S, without what is ours: reading the class token's attention again, counting the fusion."""
    published = {
        "fuse": {0.9: 4.0219, 0.8: 3.4772, 0.7: 3.0293, 0.6: 2.6353, 0.5: 2.3088},
        "drop": {0.9: 3.9881, 0.8: 3.4442, 0.7: 2.9970, 0.6: 2.6084, 0.5: 2.2824},
    }
    from dynavit.cost.macs import closed_form_macs, scoring_macs

    options = {**EVIT, "stages": (3, 6, 9), "keep_ratio": ratio, "reducer": REDUCERS[form]}
    model = dynavit.create_model("deit_small_patch16_224", **options)  # type: ignore[arg-type]
    counts = model.stage_counts(196)
    before = [196, *(model.reducer.leaves(k) for k in counts)]
    fusion = sum(model.reducer.macs(k, n - k, 384) for k, n in zip(counts, before, strict=False))
    macs = closed_form_macs(model) - scoring_macs(model) - fusion
    assert macs / 1e9 == pytest.approx(published[form][ratio], abs=5.1e-5)
