"""Overlapping patches: which pixels a token sees, grids, positions from plain weights, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor

import dynavit
from dynavit import InputError, PrunedViT
from dynavit.checkpoints.start import load_reid_start
from dynavit.models.patches import OverlappingPatchEmbed

Model = Callable[..., PrunedViT]
Images = Callable[..., Tensor]
TINY = {"depth": 1, "embed_dim": 24, "num_heads": 3, "num_classes": 0}


def test_each_token_is_the_plain_embedding_of_its_crop() -> None:
    torch.manual_seed(0)
    embed = OverlappingPatchEmbed(img_size=(20, 14), patch_size=8, embed_dim=5, stride=(4, 3))
    plain = PatchEmbed(img_size=8, patch_size=8, embed_dim=5)
    plain.load_state_dict(embed.state_dict())
    images = torch.randn(2, 3, 20, 14)
    tokens = embed(images)
    assert embed.grid_size == (4, 3)
    for row in range(4):
        for column in range(3):
            crop = images[:, :, 4 * row : 4 * row + 8, 3 * column : 3 * column + 8]
            torch.testing.assert_close(tokens[:, 3 * row + column], plain(crop)[:, 0])


@pytest.mark.parametrize("patch", [4, 7])
def test_grid_counts_the_patches_that_fit(patch: int) -> None:
    for stride in range(1, patch + 1):
        for size in range(patch, 24):
            embed = OverlappingPatchEmbed(img_size=(size, patch), patch_size=patch, embed_dim=2, stride=stride)
            starts = [start for start in range(0, size, stride) if start + patch <= size]
            assert embed.grid_size == (len(starts), 1)
            assert embed.unused == (size - starts[-1] - patch, 0)


def test_stride_of_the_patch_size_is_the_plain_embedding(model_of: Model, images_for: Images) -> None:
    plain, model = model_of("vit"), model_of("vit", patch_stride=16)
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(images_for(plain)), plain(images_for(plain)))


def test_the_sizes_of_the_literature() -> None:
    with pytest.warns(UserWarning, match=r"\(16, 16\) pixels every \(12, 12\) leave the last 0 rows and 4 columns of"):
        model = dynavit.create_model("vit_tiny_patch16_224", img_size=(256, 128), patch_stride=12, stages=(), **TINY)
    assert model.adapter.grid_size == (21, 10)
    plain = dynavit.create_model("vit_tiny_patch16_224", img_size=(256, 128), stages=(), **TINY)
    assert plain.adapter.grid_size == (16, 8)
    images = torch.randn(1, 3, 256, 128)
    with torch.no_grad():
        output, trace = model.eval()(images, return_trace=True)
        assert [stage.kept for stage in trace.stages] == [] or trace.stages[0].kept.shape == (1, 210)
        images[..., -4:] = 9.0  # as announced
        assert torch.equal(model(images), output)
        images[..., -5] = 9.0
        assert not torch.equal(model(images), output)


# positions of plain weights


def resized_by_pillow(positions: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(rows, columns, D)`` to ``size``, by another implementation of antialiased bicubic interpolation."""
    layers = [
        np.asarray(Image.fromarray(layer).resize(size[::-1], Image.Resampling.BICUBIC))
        for layer in positions.permute(2, 0, 1).numpy()
    ]
    return torch.from_numpy(np.stack(layers)).permute(1, 2, 0)


@pytest.mark.filterwarnings("ignore:.*unused.*:UserWarning")
@pytest.mark.parametrize("route", ["checkpoint", "pretrained", "folder"])
@pytest.mark.parametrize("options", [{"patch_stride": 12}, {}], ids=["overlapping", "plain"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_base_patch16_siglip_224"])
def test_positions_are_resampled_to_oblong_grids(
    name: str, options: dict[str, Any], route: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    plain: Any = timm.create_model(name, **TINY)
    torch.nn.init.normal_(plain.pos_embed)
    options = {"img_size": (256, 128), **options}
    if route == "folder":
        dynavit.prune(plain, stages=(), architecture=name, model_kwargs=TINY).save_pretrained(tmp_path)
        backbone: Any = load_reid_start(tmp_path, None, None, **options).backbone
    else:
        save_file(plain.state_dict(), tmp_path / "plain.safetensors")
        if route == "checkpoint":
            backbone = load_reid_start(tmp_path / "plain.safetensors", name, None, **TINY, **options).backbone
        else:
            source = {"file": str(tmp_path / "plain.safetensors"), "num_classes": 0, "custom_load": False}
            model = dynavit.create_model(name, True, pretrained_cfg_overlay=source, stages=(), **TINY, **options)
            backbone = model.backbone
    grid = (21, 10) if "patch_stride" in options else (16, 8)
    assert backbone.patch_embed.grid_size == grid
    prefix = 0 if plain.no_embed_class else plain.num_prefix_tokens
    positions = plain.pos_embed.detach()[0, prefix:].unflatten(0, (14, 14))
    found = backbone.pos_embed.detach()[0, prefix:].unflatten(0, grid)
    torch.testing.assert_close(found, resized_by_pillow(positions, grid), rtol=1e-4, atol=1e-4)
    assert torch.equal(backbone.pos_embed[0, :prefix], plain.pos_embed[0, :prefix])
    transposed = resized_by_pillow(positions.transpose(0, 1), grid)
    assert not torch.allclose(found, transposed, atol=0.1)  # rows and columns are told apart
    assert torch.equal(backbone.patch_embed.proj.weight, plain.patch_embed.proj.weight)


@pytest.mark.filterwarnings("ignore:.*unused.*:UserWarning")
def test_from_one_overlapping_grid_to_another(tmp_path: Path) -> None:
    """The grid of a folder is known, so it need not be guessed from a number of tokens that fits a square."""
    saved = dynavit.create_model("vit_tiny_patch16_224", img_size=(448, 112), stages=(), **TINY)  # 28 x 7 = 14 x 14
    torch.nn.init.normal_(saved.backbone.pos_embed)
    saved.save_pretrained(tmp_path)
    backbone: Any = load_reid_start(tmp_path, None, None, img_size=(448, 112), patch_stride=12).backbone
    positions = saved.backbone.pos_embed.detach()[0, 1:].unflatten(0, (28, 7))
    found = backbone.pos_embed.detach()[0, 1:].unflatten(0, (37, 9))
    torch.testing.assert_close(found, resized_by_pillow(positions, (37, 9)), rtol=1e-4, atol=1e-4)


# the life of such a model


@torch.no_grad()
@pytest.mark.parametrize("family", ["vit", "deit_distilled", "dinov2_registers", "siglip"])
def test_round_trip(family: str, tmp_path: Path, model_of: Model, images_for: Images) -> None:
    patch = model_of(family).adapter.patch_size[0]
    size = (3 * patch, 2 * patch)
    model = model_of(family, img_size=size, patch_stride=patch // 2)
    assert model.adapter.grid_size == (5, 3)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_kwargs"]["patch_stride"] == [patch // 2] * 2
    loaded = dynavit.load(tmp_path)
    images = images_for(model)
    output, trace = loaded(images, return_trace=True)
    assert torch.equal(output, model(images))
    assert trace.stages[0].kept.shape == (3, 15)
    loaded.execution = "mask"
    torch.testing.assert_close(loaded(images), output, rtol=1e-4, atol=1e-4)


def test_other_sizes_keep_the_stride(tmp_path: Path, model_of: Model, images_for: Images) -> None:
    model = model_of("vit", patch_stride=8)
    assert model.adapter.grid_size == (7, 11)
    model.set_input_size(img_size=(96, 48))
    assert model.adapter.grid_size == (11, 5)
    assert model(images_for(model)).shape == (3, 7)
    model.set_input_size(patch_size=(12, 12))
    assert model.backbone.patch_embed.proj.stride == (8, 8)
    assert model.adapter.grid_size == (11, 5)  # 4 unused pixels
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="4 rows and 4 columns"):
        loaded = dynavit.load(tmp_path)
    assert torch.equal(loaded(images_for(model)), model(images_for(model)))


def test_dynamic_image_sizes() -> None:
    model = dynavit.create_model("test_vit", img_size=32, patch_stride=8, stages=(2,))  # has dynamic_img_size=True
    with torch.no_grad():
        _, trace = model.eval()(torch.randn(1, 3, 48, 32), return_trace=True)
    assert trace.stages[0].kept.shape == (1, 5 * 3)
    with pytest.raises(
        InputError, match=r"images of \(50, 32\) pixels are not covered .* \(2, 0\) pixels are left over"
    ):
        model(torch.randn(1, 3, 50, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_stride": 20}, r"patch_stride=\(20, 20\): .* from 1 to the patch size \(16, 16\)"),
        ({"patch_stride": 0}, "patch_stride=0: a number of pixels above 0"),
        ({"patch_stride": 7.5}, r"patch_stride=7\.5: a number of pixels above 0"),
        ({"patch_stride": [8, 20]}, r"patch_stride=\(8, 20\)"),
        ({"patch_stride": "8"}, "patch_stride"),
        ({"patch_stride": [4, 4, 4]}, "patch_stride"),
        ({"patch_stride": 8, "img_size": (8, 32)}, r"img_size=\(8, 32\) is smaller than one patch"),
        ({"patch_stride": 8, "dynamic_img_size": True, "dynamic_img_pad": True}, "goes without dynamic_img_pad"),
    ],
)
def test_strides_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dynavit.create_model("vit_tiny_patch16_224", stages=(), **TINY, **options)


def test_plain_patches_still_need_multiples() -> None:
    with pytest.raises(InputError, match=r"img_size=\(30, 30\) is no multiple of the patch size"):
        dynavit.create_model("vit_tiny_patch16_224", img_size=30, stages=(), **TINY)
    assert dynavit.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_stride=None, stages=(), **TINY
    ).adapter.grid_size == (
        2,
        2,
    )
