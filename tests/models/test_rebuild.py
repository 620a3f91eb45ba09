"""What saving finds out: whether the folder will rebuild this very model."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import LayerNorm
from torch import Tensor, nn

import dynavit
from dynavit import InputError
from dynavit.scorers import register_scorer
from dynavit.scorers.base import _SCORERS
from dynavit.scorers.key_norm import KeyNorm
from dynavit.selectors import TopK
from dynavit.selectors.registry import _SELECTORS

TINY: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 32}
NAME = "vit_tiny_patch16_224"


def tiny(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(NAME, **{**TINY, **kwargs}).eval()


def images(model: Any, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, *model.adapter.image_size, generator=torch.Generator().manual_seed(1))


def linear_head(model: Any) -> None:
    model.head = nn.Linear(24, 5)


def no_head(model: Any) -> None:
    model.head = nn.Identity()


def fewer_blocks(model: Any) -> None:
    model.blocks = model.blocks[:2]


def grey(model: Any) -> None:
    model.patch_embed.proj = nn.Conv2d(1, 24, 16, 16)


@torch.no_grad()
@pytest.mark.parametrize("told", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({}, linear_head),
        ({"num_classes": 0}, linear_head),
        ({}, no_head),
        ({}, fewer_blocks),
        ({}, grey),
        ({"in_chans": 4, "num_classes": 3}, None),
        ({"qk_norm": True, "init_values": 0.1, "reg_tokens": 2}, None),
        ({"class_token": False, "global_pool": "avg"}, None),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False, "num_heads": 3}, None),
        ({"qkv_bias": False, "mlp_ratio": 2, "num_heads": 4}, None),
        ({"dynamic_img_size": True}, None),
    ],
)
def test_what_timm_can_make_again_is_found_out(
    options: dict[str, Any], change: Callable[[Any], None] | None, told: bool, tmp_path: Path
) -> None:
    backbone = tiny(**options)
    if change is not None:
        change(backbone)
    model = dynavit.prune(backbone, stages=(1,), architecture=NAME if told else None).eval()
    model.save_pretrained(tmp_path)
    loaded = dynavit.load(tmp_path)
    x = images(model, model.adapter.in_chans)
    assert torch.equal(loaded(x), model(x))
    assert loaded.num_classes == model.num_classes
    assert loaded.architecture == NAME
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_a = nn.Linear(base.in_features, 2, bias=False)

    @property
    def in_features(self) -> int:
        return self.base_layer.in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def sequential_head(model: Any) -> None:
    model.head = nn.Sequential(nn.Linear(24, 8), nn.GELU(), nn.Linear(8, 5))


def head_without_bias(model: Any) -> None:
    model.head = nn.Linear(24, 5, bias=False)


def lora(model: Any) -> None:
    model.head = LoRA(model.head)


def relu(model: Any) -> None:
    model.blocks[1].mlp.act = nn.ReLU()


def other_eps(model: Any) -> None:
    model.norm.eps = 1e-3


def other_scale(model: Any) -> None:
    model.blocks[2].attn.scale = 1.0


def other_heads_in_one(model: Any) -> None:
    model.blocks[2].attn.num_heads, model.blocks[2].attn.head_dim = 4, 6


def other_class(model: Any) -> None:
    model.blocks[0].mlp.fc2 = Scaled(96, 24)


def patched(model: Any) -> None:
    model.blocks[0].mlp.forward = torch.zeros_like


def wider_mlp_in_one(model: Any) -> None:
    model.blocks[1].mlp.fc1, model.blocks[1].mlp.fc2 = nn.Linear(24, 48), nn.Linear(48, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sequential_head, r"head\.0\.weight.*reset_classifier"),
        (head_without_bias, r"only vit_tiny_patch16_224 has head\.bias.*reset_classifier"),
        (lora, r"lora_a.*merge adapters such as LoRA"),
        (relu, r"backbone\.blocks\.1\.mlp\.act is a ReLU, that of vit_tiny_patch16_224 a GELU"),
        (other_eps, r"backbone\.norm\.eps is 0\.001, that of vit_tiny_patch16_224 1e-06"),
        (other_scale, r"blocks\.2\.attn\.scale is 1\.0"),
        (other_heads_in_one, r"blocks\.2\.attn\.num_heads is 4, that of vit_tiny_patch16_224 2"),
        (other_class, r"blocks\.0\.mlp\.fc2 is a Scaled"),
        (patched, r"the outputs for the same input"),
        (wider_mlp_in_one, r"backbone\.blocks\.1\.mlp\.fc1\.weight is \(48, 24\), vit_tiny_patch16_224 has \(96, 24\)"),
    ],
)
def test_what_timm_cannot_make_again_is_refused_and_named(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    backbone = tiny()
    change(backbone)
    with pytest.raises(InputError, match=message):
        dynavit.prune(backbone, stages=(1,)).save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    if change is not patched:  # only running it tells
        with pytest.raises(InputError, match=message):
            dynavit.prune(backbone, stages=(1,), architecture=NAME, model_kwargs=TINY)


def test_a_change_after_the_first_save_is_noticed(tmp_path: Path) -> None:
    model = dynavit.prune(tiny(), stages=(1,))
    model.save_pretrained(tmp_path)
    assert isinstance(model.backbone.blocks[0].norm1, LayerNorm)
    model.backbone.blocks[0].norm1.eps = 0.1
    with pytest.raises(InputError, match=r"blocks\.0\.norm1\.eps"):
        model.save_pretrained(tmp_path)
    model.backbone.blocks[0].norm1.eps = 1e-6
    linear_head(model.backbone)
    model.save_pretrained(tmp_path)
    assert dynavit.load(tmp_path).num_classes == model.num_classes == 5


def test_finding_out_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """Random numbers, modes, gradients; and it works in half precision and with weights of NaN."""
    model = dynavit.prune(tiny(drop_path_rate=0.1), stages=(1,), model_kwargs={"drop_path_rate": 0.1}).train()
    model.backbone.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    model.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in model.parameters())
    dynavit.prune(tiny().bfloat16()).save_pretrained(tmp_path)
    broken = tiny()
    nn.init.constant_(broken.norm.weight, float("nan"))
    dynavit.prune(broken).save_pretrained(tmp_path)


# Folders that stand alone


@pytest.mark.parametrize(
    "source", [{"checkpoint_path": "weights.pth"}, {"pretrained_cfg_overlay": {"mean": (0.1, 0.2, 0.3), "file": "x"}}]
)
def test_where_weights_came_from_is_not_saved(source: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(tiny(num_classes=3).state_dict(), "weights.pth")
    model = dynavit.create_model(NAME, num_classes=3, cache_dir="cache", **source, **TINY)
    model.save_pretrained("saved")
    Path("weights.pth").unlink()
    config = json.loads(Path("saved/config.json").read_text())
    assert not {"checkpoint_path", "cache_dir", "pretrained_cfg_overlay"} & config["model_kwargs"].keys()
    loaded = dynavit.load("saved")
    assert torch.equal(loaded(images(loaded)), model.eval()(images(model)))
    assert tuple(loaded.backbone.pretrained_cfg["mean"]) == tuple(model.backbone.pretrained_cfg["mean"])


@pytest.mark.parametrize(
    "extra",
    [
        {"checkpoint_path": "other.pth"},
        {"pretrained": True},
        {"pretrained_cfg": {"file": "other.pth"}, "pretrained_cfg_overlay": {"url": "https://example.org/x"}},
    ],
)
def test_a_config_cannot_make_loading_read_something_else(extra: dict[str, Any], tmp_path: Path) -> None:
    model = dynavit.create_model(NAME, num_classes=3, **TINY)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_kwargs"] |= extra
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = dynavit.load(tmp_path)
    assert torch.equal(loaded(images(loaded)), model.eval()(images(model)))
    for place in ("hf-hub:somebody/model", "local-dir:elsewhere"):
        (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": place}))
        with pytest.raises(InputError, match="outside of the folder"):
            dynavit.load(tmp_path)


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        dynavit.create_model(NAME, **TINY).save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o644}


# Loading with other settings, and what is said where that cannot be


@torch.no_grad()
@pytest.mark.parametrize("size", [48, (32, 64)])
@pytest.mark.parametrize("family", ["vit", "dinov2_registers", "eva02", "beit"])
def test_another_image_size(family: str, size: Any, tmp_path: Path, model_of: Any) -> None:
    model = model_of(family)
    model.save_pretrained(tmp_path)
    patch = model.adapter.patch_size[0]
    pair = tuple(side // 16 * patch for side in (size if isinstance(size, tuple) else (size, size)))
    loaded = dynavit.load(tmp_path, img_size=pair)
    model.set_input_size(img_size=pair)
    assert torch.equal(loaded(images(model)), model(images(model)))
    with pytest.raises(InputError, match="img_size=17"):
        dynavit.load(tmp_path, img_size=17)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": (1, 2), "keep_ratio": 0.7}, r"missing: scorers\.1.*stages.*dynavit\.prune"),
        ({"scorer": "linear"}, r"scorers.*scorer.*dynavit\.prune"),
        ({"num_classes": 7}, r"size mismatch for backbone\.head.*number of classes is another.*reset_classifier"),
        ({"depth": 4}, r"missing: backbone\.blocks\.3.*belongs to another model"),
        ({"patch_stride": 8}, r"size mismatch for backbone\.pos_embed.*grid of patches is another"),
        ({"map_location": "cuda:77"}, r"map_location='cuda:77'.*map_location='cpu'"),
        ({"map_location": "gpu"}, r"map_location='gpu'"),
    ],
)
def test_why_a_model_cannot_be_loaded(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    dynavit.create_model(NAME, num_classes=3, stages=(1,), scorer="mlp", **TINY).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        dynavit.load(tmp_path, **options)
    assert "truncated" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("my_pkg.selectors", r"registered by my_pkg\.selectors, import that first"),
        ("__main__", "registered by the script or notebook that saved the model"),
    ],
)
@pytest.mark.parametrize("kind", ["selector", "scorer"])
def test_parts_of_ones_own_are_named_with_their_module(
    kind: str, module: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a new process that has not imported what registers them; nothing is imported by itself."""
    made: Any
    with monkeypatch.context() as registered:
        if kind == "selector":
            registered.setattr(_SELECTORS, "classes", dict(_SELECTORS.classes))
            made = type("Noisy", (TopK,), {"__doc__": "Mine.", "__module__": module})
            dynavit.register_selector("noisy")(made)
        else:
            registered.setattr(_SCORERS, "classes", dict(_SCORERS.classes))
            made = type("Noisy", (KeyNorm,), {"__doc__": "Mine.", "__module__": module, "name": "noisy"})
            register_scorer(made)
        dynavit.create_model(NAME, stages=(1,), **{kind: "noisy"}, **TINY).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())[kind]["module"] == module
        assert dynavit.load(tmp_path).stages == (1,)  # while it is registered
    with pytest.raises(InputError, match=rf"unknown {kind} 'noisy': it was {message}"):
        dynavit.load(tmp_path)


# TorchScript


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"reducer": "fuse"}, {"count_rule": "current", "scorer": "class_attention"}])
def test_models_can_be_traced(options: dict[str, Any]) -> None:
    model = dynavit.create_model(NAME, stages=(1, 2), **options, **{**TINY, "img_size": 64}).eval()
    traced = torch.jit.trace(model, images(model))
    other = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(traced(other), model(other))
