"""NaFlexVit: images of different sizes in one batch, padded; the padding exists for nobody."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import apply_rot_embed_cat
from timm.models.naflexvit import NaFlexVitCfg
from torch import Tensor, nn

from dynavit.adapters import NaFlexVitAdapter, create_adapter
from dynavit.errors import InputError, UnsupportedBackbone
from dynavit.functional import log_mask
from tests.conftest import randomise

Patches = dict[str, Tensor]
Images = Tensor | Patches

SMALL: dict[str, Any] = {"depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 7}
ROPE: dict[str, Any] = {"class_token": True, "pos_embed": "none", "global_pool": "token"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gap": ("naflexvit_base_patch16_gap", {}),
    "factorized": ("naflexvit_base_patch16_parfac_gap", {"pool_include_prefix": True}),
    "map": ("naflexvit_base_patch16_map", {"use_key_only_attn_mask": True}),
    "siglip": ("naflexvit_base_patch16_siglip", {}),
    "radio": ("naflexvit_base_patch16_radio_v3", {"pos_embed_grid_size": (8, 8)}),
    "grid_sample": ("naflexvit_base_patch16_gap", {"pos_embed_use_grid_sample": True, "pre_norm": True}),
    "axial": ("naflexvit_base_patch16_gap", {"rope_type": "axial", **ROPE}),
    "grouped": ("naflexvit_base_patch16_gap", {"rope_type": "axial", "qkv_fused": False, "num_kv_heads": 1}),
    "swiglu": ("naflexvit_base_patch16_map", {"attn_type": "eva", "swiglu_mlp": True, "pool_include_prefix": True}),
    "mixed": ("naflexvit_base_patch16_gap", {"rope_type": "mixed", **ROPE}),
    "mixed_map": ("naflexvit_base_patch16_siglip", {"rope_type": "mixed", "rope_grid_indexing": "xy"}),
    "from_vit": ("vit_tiny_patch16_224", {"use_naflex": True, "img_size": (48, 64)}),
    "from_eva": ("eva02_tiny_patch14_224", {"use_naflex": True, "img_size": 64, "patch_size": 16}),
    "dinov3": ("naflexvit_base_patch16_map", {"rope_type": "dinov3", "rope_rotate_half": True, "pos_embed": "none"}),
    "mrope": (
        "naflexvit_base_patch16_gap",
        {"rope_type": "mrope", "rope_mrope_section": (2, 3, 3), "swiglu_mlp": True},
    ),
}
ROTARY = ["axial", "grouped", "mixed", "mixed_map", "from_eva", "dinov3", "mrope"]
KINDS = ["gap", "siglip", "radio", "axial", "mixed"]  # one of each way to pool and to know positions

GRIDS = ((3, 4), (2, 2), (5, 2), (3, 4))
every_variant = pytest.mark.parametrize("name", VARIANTS)
each_kind = pytest.mark.parametrize("name", KINDS)
each_rotary = pytest.mark.parametrize("name", ROTARY)


def make(name: str, **options: Any) -> Any:
    """Return a small NaFlexVit in eval mode, randomised."""
    model, own = VARIANTS[name]
    newest = "rope_mrope_section" in inspect.signature(NaFlexVitCfg).parameters
    if not newest and name in ("radio", "mixed", "mixed_map", "from_eva", "dinov3", "mrope", "grid_sample", "grouped"):
        pytest.skip(f"timm {timm.__version__} has no such NaFlexVit, or one that fails by itself")
    return randomise(timm.create_model(model, **{**SMALL, **own, **options}).eval())


def pixels(batch: int = 3, size: tuple[int, int] = (48, 64), seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def patchified(image: Tensor) -> tuple[Tensor, Tensor]:
    """Cut an image (3, H, W) into patches (N, 16 * 16 * 3) and their rows and columns (N, 2)."""
    rows, columns = image.shape[1] // 16, image.shape[2] // 16
    patches = image.unflatten(1, (rows, 16)).unflatten(3, (columns, 16)).permute(1, 3, 2, 4, 0)
    return patches.reshape(rows * columns, -1), torch.cartesian_prod(torch.arange(rows), torch.arange(columns))


def batch_of(grids: tuple[tuple[int, int], ...] = GRIDS, length: int | None = None, seed: int = 0) -> Patches:
    """Return random images of so many rows and columns of patches, padded to the longest or to ``length``."""
    images = [pixels(1, (16 * rows, 16 * columns), seed + i)[0] for i, (rows, columns) in enumerate(grids)]
    length = length or max(rows * columns for rows, columns in grids)
    shape = (len(grids), length)
    batch = {
        "patches": torch.zeros(*shape, 768),
        "patch_coord": torch.zeros(*shape, 2, dtype=torch.long),
        "patch_valid": torch.zeros(*shape, dtype=torch.bool),
    }
    for row, image in enumerate(images):
        patches, coordinates = patchified(image)
        batch["patches"][row, : len(patches)] = patches
        batch["patch_coord"][row, : len(patches)] = coordinates
        batch["patch_valid"][row, : len(patches)] = True
    return batch


def decisions(images: Images, ratio: float = 0.5, stages: tuple[int, ...] = (1, 3)) -> dict[int, Tensor]:
    """Keep at each stage a random half of every image's own patches."""
    generator = torch.Generator().manual_seed(1)
    valid = images["patch_valid"] if isinstance(images, dict) else torch.ones(len(images), 12, dtype=torch.bool)
    kept, result = valid, {}
    for stage in stages:
        counts = (kept.sum(dim=1, keepdim=True) * ratio).long().clamp(min=1)
        noise = torch.rand(valid.shape, generator=generator).masked_fill(~kept, -1)
        kept = noise.argsort(dim=1, descending=True).argsort(dim=1) < counts
        result[stage] = kept
    return result


def run(
    backbone: nn.Module,
    images: Images,
    keep: dict[int, Tensor] | None = None,
    *,
    gathers: bool = False,
    wrong: bool = False,
) -> Tensor:
    """Drive the adapter as a pruned model does, for given decisions over the original patches.

    ``wrong`` gathers the context of other patches than those kept.
    """
    adapter: Any = create_adapter(backbone)
    prefix = adapter.num_prefix_tokens
    x, context = adapter.embed(images)
    valid = adapter.valid(context)
    alive = torch.ones(len(x), x.shape[1] - prefix, dtype=torch.bool) if valid is None else valid
    positions = torch.arange(alive.shape[1]).expand(alive.shape)
    hides = valid is not None
    for number in range(adapter.depth):
        if keep is not None and number in keep:
            alive, hides = alive & keep[number].gather(1, positions), True
            if gathers:
                index = (~alive).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(alive.sum(dim=1).max())]
                picked = index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
                x = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, picked)], dim=1)
                other = torch.arange(index.shape[1]).expand(index.shape) if wrong else index
                context = adapter.gather(context, other)
                positions, alive = positions.gather(1, index), alive.gather(1, index)
        mask = nn.functional.pad(alive, (prefix, 0), value=True)[:, None, None, :] if hides else None
        x = adapter.block(number, x, context, mask)
    return adapter.head(adapter.norm(x), alive.float() if hides else None, training=False, pre_logits=False)


# Nothing to do is done exactly


@torch.no_grad()
@every_variant
def test_images_of_one_size_exactly_timm(name: str) -> None:
    backbone, images = make(name), pixels()
    assert torch.equal(run(backbone, images), backbone(images))
    other = pixels(size=(32, 80))
    assert torch.equal(run(backbone, other), backbone(other))


@torch.no_grad()
@pytest.mark.parametrize("fused", [True, False])
@every_variant
def test_images_of_many_sizes_exactly_timm(name: str, fused: bool) -> None:
    backbone = make(name)
    for module in backbone.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    for batch in (batch_of(), batch_of(length=15)):
        assert torch.equal(run(backbone, batch), backbone(batch))


@torch.no_grad()
def test_patches_of_another_size_exactly_timm() -> None:
    """FlexiViT's resized patch embedding: patches that are not flattened."""
    backbone, batch = make("gap", enable_patch_interpolator=True), batch_of()
    batch["patches"] = batch["patches"].unflatten(2, (16, 16, 3))[:, :, ::2, ::2]
    assert torch.equal(run(backbone, batch), backbone(batch))
    keep = decisions(batch)
    masked, gathered = run(backbone, batch, keep), run(backbone, batch, keep, gathers=True)
    torch.testing.assert_close(gathered, masked, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@each_kind
def test_training_noise_is_drawn_as_timm_does(name: str) -> None:
    """Also under the faint mask of a training step, which leaves a millionth of what it hides."""
    noise = {"drop_path_rate": 0.5, "proj_drop_rate": 0.1, "pos_drop_rate": 0.1}
    noise |= {"rope_rescale_coords": 2.0} if name in ROTARY else {}
    backbone = make(name, **noise).train()
    adapter: Any = create_adapter(backbone)
    batch = batch_of()
    torch.manual_seed(0)
    expected = backbone.forward_features(**batch)["patches"]
    results: list[Tensor] = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        x, context = adapter.embed(batch)
        keys = nn.functional.pad(adapter.valid(context).float(), (adapter.num_prefix_tokens, 0), value=1.0)
        mask = log_mask(keys[:, None, None, :]) if len(results) else None
        for number in range(adapter.depth):
            x = adapter.block(number, x, context, mask)
        results.append(adapter.norm(x))
    real = nn.functional.pad(batch["patch_valid"], (adapter.num_prefix_tokens, 0), value=True)
    assert torch.equal(results[0][real], expected[real])
    assert torch.equal(results[1][real], expected[real])
    assert not torch.allclose(results[2][real], expected[real], atol=1e-2)


@torch.no_grad()
# positions sampled at the patches are not those of the resized grid, in timm as here
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "grid_sample"])
def test_patches_of_images_equal_the_images(name: str) -> None:
    backbone, images = make(name), pixels(2)
    cut = [patchified(image) for image in images]
    batch = {
        "patches": torch.stack([patches for patches, _ in cut]),
        "patch_coord": torch.stack([places for _, places in cut]),
        "patch_valid": torch.ones(2, 12, dtype=torch.bool),
    }
    torch.testing.assert_close(run(backbone, batch), run(backbone, images), rtol=1e-4, atol=1e-4)


# Padding is invisible


@torch.no_grad()
@pytest.mark.parametrize("prunes", [False, True])
@every_variant
def test_a_batch_equals_its_images_one_by_one(name: str, prunes: bool) -> None:
    backbone, batch = make(name), batch_of(length=14)
    keep = decisions(batch) if prunes else {}
    together = run(backbone, batch, keep, gathers=True)
    for row, (rows, columns) in enumerate(GRIDS):
        alone = {key: value[row : row + 1, : rows * columns] for key, value in batch.items()}
        own = {stage: mask[row : row + 1, : rows * columns] for stage, mask in keep.items()}
        torch.testing.assert_close(
            together[row : row + 1], run(backbone, alone, own, gathers=True), rtol=1e-4, atol=1e-4
        )


@torch.no_grad()
@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan")])
@each_kind
def test_what_stands_in_the_padding_does_not_matter(name: str, value: float) -> None:
    backbone, batch = make(name), batch_of()
    padding = ~batch["patch_valid"]
    assert padding.any()
    keep = decisions(batch)
    expected = [run(backbone, batch), run(backbone, batch, keep), run(backbone, batch, keep, gathers=True)]
    dirty = {key: tensor.clone() for key, tensor in batch.items()}
    dirty["patches"][padding] = value
    dirty["patch_coord"][padding] = 99
    results = [run(backbone, dirty), run(backbone, dirty, keep), run(backbone, dirty, keep, gathers=True)]
    assert all(map(torch.equal, results, expected))
    assert dirty["patch_coord"].max() == 99  # what belongs to the caller was not written to


@torch.no_grad()
@each_kind
def test_it_would_matter_if_the_padding_counted(name: str) -> None:
    """The negative control: the same padding, called valid."""
    backbone, batch = make(name), batch_of(((3, 4), (2, 4)))
    counted = {**batch, "patch_valid": torch.ones_like(batch["patch_valid"])}
    difference = (run(backbone, counted) - run(backbone, batch)).abs().amax(dim=1)
    assert difference[0] == 0
    assert difference[1] > 0.05


# Removing patches equals hiding them


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@every_variant
def test_gathering_equals_masking(name: str, padded: bool) -> None:
    backbone = make(name)
    images: Images = batch_of(length=14) if padded else pixels()
    keep = decisions(images)
    counts = {int(count) for count in keep[1].sum(dim=1)}
    assert len(counts) == (3 if padded else 1)
    masked, gathered = run(backbone, images, keep), run(backbone, images, keep, gathers=True)
    torch.testing.assert_close(gathered, masked, rtol=1e-4, atol=1e-4)
    assert (masked - run(backbone, images)).abs().max() > 0.1  # something was dropped


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@each_rotary
def test_it_would_not_with_the_context_of_other_patches(name: str, padded: bool) -> None:
    backbone = make(name)
    images: Images = batch_of() if padded else pixels()
    keep = decisions(images)
    masked, wrong = run(backbone, images, keep), run(backbone, images, keep, gathers=True, wrong=True)
    assert (masked - wrong).abs().max() > 0.02


# Positions follow their patches


def shuffled(backbone: nn.Module, images: Images, *, with_context: bool) -> tuple[Tensor, Tensor]:
    """Run blocks on the patches in order and in another; return both, the second put back in order."""
    adapter: Any = create_adapter(backbone)
    prefix = adapter.num_prefix_tokens
    x, context = adapter.embed(images)
    order = torch.rand(len(x), x.shape[1] - prefix, generator=torch.Generator().manual_seed(2)).argsort(dim=1)
    index = order.unsqueeze(-1).expand(-1, -1, x.shape[-1])
    other = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, index)], dim=1)
    own = adapter.gather(context, order)
    if not with_context:
        own = type(own)(context.rope, own.valid)
    for number in range(adapter.depth):
        x, other = adapter.block(number, x, context, None), adapter.block(number, other, own, None)
    back = torch.empty_like(x[:, prefix:]).scatter(1, index, other[:, prefix:])
    return x, torch.cat([other[:, :prefix], back], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@every_variant
def test_the_order_of_patches_does_not_matter(name: str, padded: bool) -> None:
    backbone = make(name)
    images: Images = batch_of(length=13) if padded else pixels()
    expected, result = shuffled(backbone, images, with_context=True)
    valid = torch.ones(expected.shape[:2], dtype=torch.bool)
    if isinstance(images, dict):
        valid[:, -13:] = images["patch_valid"]
    torch.testing.assert_close(result[valid], expected[valid], rtol=1e-4, atol=1e-4)
    if name in ROTARY:  # the negative control: another order, rotated as the first
        _, wrong = shuffled(backbone, images, with_context=False)
        assert (wrong - expected)[valid].abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@each_rotary
def test_what_each_patch_is_turned_by(name: str, padded: bool) -> None:
    """Each block's embedding after two gathers is that of the original patches, made tokens turn nothing."""
    backbone = make(name)
    images: Any = batch_of() if padded else pixels(4)
    adapter: Any = create_adapter(backbone)
    _, context = adapter.embed(images)
    first = torch.tensor([[0, 1, 3], [3, 2, 0], [9, 4, 5], [11, 10, 6]])
    if padded:
        first = first.minimum(images["patch_valid"].sum(dim=1, keepdim=True) - 1)
    second = torch.tensor([[3, 0, 2]]).expand(4, -1)  # 3 is the made token
    after = adapter.gather(adapter.extend(adapter.gather(context, first), 2), second)
    at_once = adapter.gather(adapter.extend(context, 1), torch.cat([torch.full((4, 1), 12), first[:, [0, 2]]], dim=1))
    for later in (after, at_once):
        valid = adapter.valid(later)
        assert valid.all() if padded else valid is None
        for number in range(adapter.depth):
            rope = adapter._options(number, later)["rope"].expand(4, 3, -1, -1)
            query = torch.randn(4, 3, 3, 16)
            half = backbone.blocks[0].attn.rotate_half
            assert torch.equal(apply_rot_embed_cat(query, rope, half=half)[:, :, 0], query[:, :, 0])
            for row, patch in ((row, patch) for row in range(4) for patch in (1, 2)):
                shape = GRIDS[row] if padded else (3, 4)
                expected = backbone.rope.get_embed(shape=shape)
                expected = expected[number] if backbone.rope_is_mixed else expected[None].expand(3, -1, -1)
                assert torch.equal(rope[row, :, patch], expected[:, first[row, [0, 2][patch - 1]]])


# A block in two halves, and what its attention looks at


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["gap", "siglip", "axial", "mixed", "mrope"])
def test_attention_then_mlp_is_the_block(name: str, checkpointing: bool) -> None:
    backbone = make(name, drop_path_rate=0.5, proj_drop_rate=0.1, attn_drop_rate=0.1).train()
    backbone.set_grad_checkpointing(checkpointing)
    adapter: Any = create_adapter(backbone)
    x, context = adapter.embed(batch_of())
    for number in range(1, adapter.depth):
        torch.manual_seed(number)
        expected = adapter.block(number, x, context, None)
        torch.manual_seed(number)
        result = adapter.mlp(number, adapter.attention(number, x, context, None))
        assert torch.equal(result, expected)
        weight = backbone.blocks[number].attn.proj.weight
        gradients = []
        for output in (expected, result):
            torch.manual_seed(0)
            gradients.append(torch.autograd.grad(output.square().mean(), weight, retain_graph=True)[0])
        assert torch.equal(gradients[0], gradients[1])


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@every_variant
def test_the_view_shows_the_attention_that_the_block_pays(name: str, padded: bool) -> None:
    """Weights times values, through the projection, give the block's attention."""
    backbone = make(name)
    images: Images = batch_of() if padded else pixels()
    adapter: Any = create_adapter(backbone)
    x, context = adapter.embed(images)
    view = adapter.view(1, x, context, None)
    block = backbone.blocks[1]
    weights = view.attention()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))
    mixed = (weights @ view.values()).transpose(1, 2).flatten(2)
    scale = block.gamma_1 if hasattr(block, "gamma_1") else getattr(block.ls1, "gamma", 1.0)
    result = x + (1.0 if scale is None else scale) * block.attn.proj(mixed)
    torch.testing.assert_close(result, adapter.attention(1, x, context, None), rtol=1e-4, atol=1e-4)
    if isinstance(images, dict):
        hidden = ~nn.functional.pad(images["patch_valid"], (adapter.num_prefix_tokens, 0), value=True)
        assert weights.transpose(1, 3)[hidden].abs().max() == 0
    assert adapter.has_class_token == (backbone.embeds.cls_token is not None)
    if adapter.has_class_token:
        torch.testing.assert_close(view.class_attention(), weights[:, :, 0])
    else:
        with pytest.raises(UnsupportedBackbone, match="no class token"):
            view.class_attention()


# Gradients


def gradients_of(backbone: nn.Module, batch: Patches, *, checkpointing: bool) -> dict[str, Tensor]:
    backbone.train()
    backbone.set_grad_checkpointing(checkpointing)
    backbone.zero_grad()
    adapter: Any = create_adapter(backbone)
    batch = {**batch, "patches": batch["patches"].clone().requires_grad_()}
    x, context = adapter.embed(batch)
    valid = adapter.valid(context)
    mask = (0.9 * valid).requires_grad_()
    keys = nn.functional.pad(mask, (adapter.num_prefix_tokens, 0), value=1.0)[:, None, None, :]
    for number in range(adapter.depth):
        x = adapter.block(number, x, context, log_mask(keys))
    # fractional weights of the head cancel where all are equal; only attention speaks of the mask here
    logits = adapter.head(adapter.norm(x), valid.float(), training=True, pre_logits=False)
    nn.functional.cross_entropy(logits, torch.tensor([0, 3, 5, 1])).backward()
    found = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    return found | {"mask": mask.grad, "patches": batch["patches"].grad}


@each_kind
def test_gradients(name: str) -> None:
    backbone, batch = make(name), batch_of()
    found = gradients_of(backbone, batch, checkpointing=False)
    assert all(gradient.isfinite().all() for gradient in found.values())
    missing = {key for key, _ in backbone.named_parameters()} - {key for key, value in found.items() if value.any()}
    assert missing <= {"blocks.3.norm2.bias"}  # none but by accident
    valid = batch["patch_valid"]
    assert not found["mask"][~valid].any()
    assert found["mask"][valid].count_nonzero() == valid.sum()
    per_patch = found["patches"].abs().sum(dim=-1)
    assert not per_patch[~valid].any()
    assert per_patch[valid].all()
    again = gradients_of(backbone, batch, checkpointing=True)
    for key, gradient in found.items():
        torch.testing.assert_close(again[key], gradient)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@each_kind
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    backbone, batch = make(name), batch_of()
    expected = run(backbone, batch, decisions(batch), gathers=True)
    backbone.to(dtype)
    batch = {**batch, "patches": batch["patches"].to(dtype)}
    result = run(backbone, batch, decisions(batch), gathers=True)
    assert result.dtype == dtype
    tolerance = 0.15 if dtype == torch.bfloat16 else 1e-4
    assert (result - expected).abs().max() < tolerance * expected.std()


# What is known of sizes, and what is refused


def test_sizes() -> None:
    adapter: Any = create_adapter(make("gap"))
    assert (adapter.image_size, adapter.patch_size, adapter.grid_size) == ((384, 384), (16, 16), (24, 24))
    overlay = {"input_size": (3, 48, 64)}  # timm forgets img_size here
    backbone = timm.create_model(VARIANTS["gap"][0], img_size=80, pretrained_cfg_overlay=overlay, **SMALL)
    for adapter in (create_adapter(backbone), create_adapter(make("from_vit"))):
        assert (adapter.image_size, adapter.grid_size, adapter.in_chans) == ((48, 64), (3, 4), 3)
    del backbone.pretrained_cfg
    with pytest.raises(InputError, match="no image size of its own"):
        _ = create_adapter(backbone).grid_size


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"global_pool": "max"}, r"global_pool='max'\) cannot leave out dropped tokens; supported: 'token', 'avg'"),
        ({"global_pool": "avgmax"}, "global_pool='avgmax'"),
        ({"patch_drop_rate": 0.2}, "patch_drop_rate"),
    ],
)
def test_refuses_what_it_cannot_hide(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnsupportedBackbone, match=sentence):
        create_adapter(make("gap", **options))


def test_refuses_other_blocks() -> None:
    backbone = make("gap")
    backbone.blocks[2] = timm.models.vision_transformer.ResPostBlock(48, 3)
    with pytest.raises(UnsupportedBackbone, match=r"blocks\[2\] is a ResPostBlock"):
        NaFlexVitAdapter(backbone)


def without(key: str) -> Callable[[Patches], Any]:
    return lambda batch: {name: value for name, value in batch.items() if name != key}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("patch_valid"), "patch_valid is missing"),
        (without("patch_coord"), "patch_coord is missing"),
        (lambda batch: {**batch, "attn_mask": torch.zeros(4, 1, 16, 16)}, "leave it out"),
        (lambda batch: {**batch, "patch_valid": batch["patch_valid"][:, 1:]}, r"patch_valid \(4, 11\) do not fit"),
        (lambda batch: {**batch, "patch_valid": torch.arange(4)[:, None].expand(4, 12) > 0}, "no patch at all"),
        (lambda batch: batch["patches"], r"images of shape \(4, 12, 768\)"),
        (lambda _: pixels(size=(40, 64)), "40x64 pixels are no multiple of the patch size 16x16"),
    ],
)
def test_refuses_other_input(change: Callable[[Patches], Any], sentence: str) -> None:
    adapter = create_adapter(make("gap"))
    with pytest.raises(InputError, match=sentence):
        adapter.embed(change(batch_of()))


def test_refuses_patches_for_a_convolution() -> None:
    backbone = make("gap", embed_proj_type="conv")
    with pytest.raises(InputError, match="embed_proj_type='linear'"):
        NaFlexVitAdapter(backbone).embed(batch_of())
    images = pixels()
    assert torch.equal(run(backbone, images), backbone(images))
