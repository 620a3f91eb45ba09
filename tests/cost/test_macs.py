"""Closed-form MACs against the counter, against published figures, and what both leave untouched."""

from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import dynavit
from dynavit import InputError
from dynavit.cost import closed_form_macs, count_macs, tokens_per_stage

SMALL = {"embed_dim": 32, "num_heads": 2, "depth": 4, "img_size": 64, "num_classes": 7}
BACKBONES = {
    "class token": ("test_vit", {}),
    "registers": ("test_vit", {"reg_tokens": 4}),
    "average pool": ("test_vit", {"global_pool": "avg"}),
    "average pool with prefix": ("test_vit", {"global_pool": "avg", "pool_include_prefix": True}),
    "no pool": ("test_vit", {"global_pool": "", "num_classes": 7}),
    "no head": ("test_vit", {"num_classes": 0}),
    "two channels": ("test_vit", {"in_chans": 2}),
    "gated attention": ("test_vit4", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "siglip": ("vit_base_patch16_siglip_224", SMALL),
    "siglip with prefix": (
        "vit_base_patch16_siglip_224",
        {**SMALL, "class_token": True, "pool_include_prefix": True},
    ),
    "map pool beside a class token": ("test_vit", {"global_pool": "map"}),
    "swiglu": ("vit_giant_patch14_dinov2", {**SMALL, "img_size": 56}),
    "not square": ("vit_tiny_patch16_224", {**SMALL, "img_size": (64, 32)}),
    "convolutional stem": ("vit_tiny_r_s16_p8_224", {**SMALL, "img_size": 64}),
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("ratio", [1.0, 0.7, 0.5])
def test_arithmetic_equals_counting(backbone: str, ratio: float) -> None:
    name, kwargs = BACKBONES[backbone]
    model = dynavit.create_model(name, stages=(1, 3), keep_ratio=ratio, **kwargs)
    assert closed_form_macs(model) == count_macs(model)


@pytest.mark.parametrize("ratio", [1.0, 0.7, 0.5])
def test_every_family(family: str, ratio: float, model_of: Callable[..., dynavit.PrunedViT]) -> None:
    model = model_of(family, keep_ratio=ratio)
    assert closed_form_macs(model) == count_macs(model)


@pytest.mark.parametrize("fused", [True, False])
def test_differential_attention_multiplies_values_twice_when_fused(fused: bool) -> None:
    pytest.importorskip("timm.layers.diff_attention")
    model = dynavit.create_model("test_vit", attn_layer="diff", keep_ratio=0.5, scorer="mlp")
    for block in model.backbone.blocks:
        block.attn.fused_attn = fused
    assert closed_form_macs(model) == count_macs(model)


def test_stages_that_do_not_run_cost_nothing() -> None:
    model = dynavit.create_model("test_vit", stages=(2, 4), keep_ratios=(1.0, 0.5), scorer="mlp", reducer="drop")
    matrices = [p for p in model.scorers[0].parameters() if p.ndim == 2]
    # each once a token, but for the half that is multiplied with the mean of the tokens, once an image
    scoring = 100 * sum(p.numel() for p in matrices) - 99 * matrices[1].numel() // 2
    assert closed_form_macs(model) == count_macs(model)
    random = dynavit.prune(model.backbone, stages=(2, 4), keep_ratios=(1.0, 0.5), selector="random", reducer="drop")
    assert closed_form_macs(random) == count_macs(random) == closed_form_macs(model) - scoring
    unpruned = dynavit.prune(model.backbone, stages=())
    assert closed_form_macs(unpruned) == count_macs(unpruned) == closed_form_macs(model, 1.0)


def test_a_stage_that_keeps_what_the_last_one_kept_still_scores() -> None:
    model = dynavit.create_model("test_vit", stages=(2, 4), keep_ratios=(0.5, 0.5))
    once = dynavit.prune(model.backbone, stages=(2,), keep_ratios=(0.5,))
    assert closed_form_macs(model) == count_macs(model) > closed_form_macs(once)


# reference figures: 1e-9 * (total without scorers, scorers), six decimals, 224 pixels, patch 16
PUBLISHED = [
    ("deit_tiny_patch16_224", 1.0, [196, 196, 196], 1.253683, 0.0),
    ("deit_tiny_patch16_224", 0.9, [176, 158, 142], 1.059696, 0.031800),
    ("deit_tiny_patch16_224", 0.7, [137, 96, 67], 0.775458, 0.025740),
    ("deit_tiny_patch16_224", 0.5, [98, 49, 24], 0.581048, 0.020580),
    ("deit_small_patch16_224", 1.0, [196, 196, 196], 4.598882, 0.0),
    ("deit_small_patch16_224", 0.8, [156, 125, 100], 3.348665, 0.114388),
    ("deit_small_patch16_224", 0.7, [137, 96, 67], 2.878020, 0.102878),
    ("deit_small_patch16_224", 0.6, [117, 70, 42], 2.472869, 0.091846),
]


@pytest.fixture(scope="module")
def deit() -> dict[str, VisionTransformer]:
    with torch.device("meta"):  # sizes are all that is needed
        return {name: timm.create_model(name) for name in {row[0] for row in PUBLISHED}}


@pytest.mark.parametrize(("name", "ratio", "counts", "without", "scorers"), PUBLISHED)
def test_published_deit_figures(
    deit: dict[str, VisionTransformer],
    name: str,
    ratio: float,
    counts: list[int],
    without: float,
    scorers: float,
) -> None:
    backbone = deit[name]
    random = dynavit.prune(backbone, stages=(3, 6, 9), keep_ratio=ratio, selector="random", reducer="drop")
    assert tokens_per_stage(random) == counts
    assert closed_form_macs(random) / 1e9 == pytest.approx(without, abs=6e-7)

    learned = dynavit.prune(backbone, stages=(3, 6, 9), keep_ratio=ratio, scorer="mlp", reducer="drop")
    # the published predictor ends in two outputs a token, ours in one; and it multiplies the mean of the tokens by
    # its weights once a token, ours once an image
    scored, stages = (0, 0) if ratio == 1 else (196 + counts[0] + counts[1], 3)
    less = scored * backbone.embed_dim // 4 + (scored - stages) * (backbone.embed_dim // 2) ** 2
    assert (closed_form_macs(learned) + less) / 1e9 == pytest.approx(without + scorers, abs=6e-7)


def test_attention_is_counted_on_cpu() -> None:
    model = dynavit.create_model("vit_tiny_patch16_224", stages=())
    assert count_macs(model) == 1_253_683_200  # 2.507 GFLOP; without the math backend 2.150


def test_counting_is_per_image_and_follows_the_execution() -> None:
    model = dynavit.create_model("test_vit", keep_ratio=0.5)
    assert count_macs(model, batch_size=3) == count_macs(model)
    model.execution = "mask"  # hides tokens, and so saves nothing
    assert count_macs(model) > closed_form_macs(model, 1.0)


def test_other_image_sizes() -> None:
    model = dynavit.create_model("test_vit", keep_ratio=0.5, stages=(2, 4), dynamic_img_size=True)
    assert tokens_per_stage(model, 64) == [8, 4]
    assert tokens_per_stage(model, (32, 64)) == [4, 2]
    assert closed_form_macs(model, image_size=(96, 64)) == count_macs(model, image_size=(96, 64))
    padded = dynavit.create_model("test_vit", keep_ratio=0.5, dynamic_img_size=True, dynamic_img_pad=True)
    assert closed_form_macs(padded, image_size=(50, 64)) == count_macs(padded, image_size=(50, 64))


@pytest.mark.parametrize("measure", [closed_form_macs, count_macs, tokens_per_stage])
def test_impossible_sizes_are_refused(measure) -> None:
    fixed = dynavit.create_model("test_vit", dynamic_img_size=False)
    with pytest.raises(InputError, match=r"takes 160x160 only.*set_input_size"):
        measure(fixed, image_size=64)
    dynamic = dynavit.create_model("test_vit", dynamic_img_size=True)
    with pytest.raises(InputError, match="no multiple of the patch size 16x16"):
        measure(dynamic, image_size=(64, 65))


def test_other_ratios_leave_the_model_alone() -> None:
    model = dynavit.create_model("test_vit", stages=(2, 4), keep_ratio=0.5)
    other = closed_form_macs(model, keep_ratios=(0.9, 0.3))
    assert model.keep_ratios == (0.5, 0.25)
    model.set_keep_ratio((0.9, 0.3))
    assert closed_form_macs(model) == other
    with pytest.raises(InputError, match="keep ratio"):
        closed_form_macs(model, keep_ratios=1.5)


def state(model: torch.nn.Module) -> list[bool]:
    modes = [module.training for module in model.modules()]
    return modes + [parameter.requires_grad for parameter in model.parameters()]


def test_counting_leaves_modes_and_gradients_alone() -> None:
    model = dynavit.create_model("test_vit", keep_ratio=0.5, stages=(2, 4), scorer="mlp", global_pool="map").train()
    model.backbone.blocks[0].eval().requires_grad_(False)  # as partly frozen backbones are
    before = state(model)
    assert len(set(before)) == 2
    macs = count_macs(model)
    assert state(model) == before
    with torch.inference_mode():
        assert count_macs(model) == macs
    assert state(model) == before
    assert torch.is_grad_enabled()

    model.scorers[1].score[2] = torch.nn.Linear(1, 1)  # makes the forward fail
    before = state(model)
    with pytest.raises(RuntimeError):
        count_macs(model)
    assert state(model) == before
    assert torch.is_grad_enabled()
