"""Small models of every supported timm family, with weights that make each part matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import dynavit
from dynavit.adapters import create_adapter
from tests.small_runs import own_accelerate, people, pictures, reid, tiny  # noqa: F401 - fixtures

torch.set_num_threads(1)  # these models are so small that a second thread only gets in the way

_PUBLISHED_SIZE = {"embed_dim": 48, "depth": 6, "num_heads": 3, "num_classes": 10}
_SMALL = {"depth": 6, "embed_dim": 48, "num_heads": 3, "num_classes": 7}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"img_size": (64, 96)}),  # 4 x 6 patches
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 80}),
    "deit3": ("deit3_small_patch16_224", {"img_size": 80}),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 70}),
    "clip": ("vit_base_patch16_clip_224", {"img_size": 80}),
    "siglip": ("vit_base_patch16_siglip_224", {"img_size": 80}),
    "gap": ("vit_medium_patch16_gap_240", {"img_size": 80}),
    "gap_registers": ("vit_medium_patch16_reg4_gap_256", {"img_size": 80}),
    "hybrid": ("vit_tiny_r_s16_p8_224", {"img_size": 160}),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": (56, 84)}),
    "dinov3": ("vit_small_patch16_dinov3", {"img_size": 80}),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", {"img_size": 80}),
    "perception": ("vit_pe_core_tiny_patch16_384", {"img_size": 80}),
    "beit": ("beit_base_patch16_224", {"img_size": (64, 96)}),
    "naflex": ("naflexvit_base_patch16_gap", {"img_size": (64, 96)}),
    "beitv2": ("beitv2_base_patch16_224", {"img_size": 80}),
}
"""Family: timm name and what makes it small. Together they cover class and distillation tokens,
registers, neither; token, average and attention pooling; layer scale, norm_pre, no_embed_class; positions
added before the blocks, by a convolutional stem, rotary (axial and mixed), relative."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remember data checks in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value that matters; activations then have a standard deviation of 1 to 4.

    timm's initialisation would hide mistakes: layer scales of 1e-5, tokens and heads of zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("gamma", "gamma_1", "gamma_2", "weight")) and parameter.ndim == 1:
            parameter.copy_(1 + 0.2 * noise)
        elif name.endswith(("pos_embed", "_token", "latent")):
            parameter.copy_(0.7 * noise)
        elif parameter.ndim > 1:
            scale = 1.8 if "score." in name or "embed.1." in name else 1.2
            parameter.copy_(scale * noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.1 * noise)
    return module


def make_backbone(family: str, **kwargs: Any) -> nn.Module:
    """Return a family's small timm model in eval mode, randomised."""
    name, options = FAMILIES[family]
    return randomise(timm.create_model(name, **{**_SMALL, **options, **kwargs}).eval())


def make_model(family: str, **kwargs: Any) -> dynavit.PrunedViT:
    """Return a family's small pruned model in eval mode, randomised; kwargs as for create_model.

    Unless they say otherwise, its scores are learned and its tokens dropped.
    """
    name, options = FAMILIES[family]
    parts = {"selector": "topk", "scorer": "mlp", "reducer": "drop"}
    settings = {"stages": (1, 3, 4), "keep_ratio": 0.7, **parts, **_SMALL, **options, **kwargs}
    model = dynavit.create_model(name, **settings).eval()
    randomise(model)
    return model


def make_images(model: nn.Module, batch: int = 3, seed: int = 0) -> Tensor:
    """Return images ``(batch, 3, H, W)`` of the size that the model expects."""
    size = create_adapter(getattr(model, "backbone", model)).image_size
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def backbone_of() -> Callable[..., nn.Module]:
    """Function: family and timm options to a new small timm model."""
    return make_backbone


@pytest.fixture(scope="session")
def model_of() -> Callable[..., dynavit.PrunedViT]:
    """Function: family and options of create_model to a new small pruned model."""
    return make_model


@pytest.fixture(scope="session")
def images_for() -> Callable[..., Tensor]:
    """Function: model, batch size and seed to images that suit it."""
    return make_images


SLOW_FAMILIES = ("deit3", "clip", "gap_registers", "perception", "beitv2")
"""Families whose every part is in another one, too."""


@pytest.fixture(
    params=[
        pytest.param(family, marks=[pytest.mark.slow] if family in SLOW_FAMILIES else [])
        for family in FAMILIES
        if family != "hybrid"  # its stem leaves images alike
    ]
)
def family(request: pytest.FixtureRequest) -> str:
    """Return every supported family in turn."""
    return request.param


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Return the folder of numbers that the published implementations gave."""
    return Path(__file__).parent / "vectors"


# The published implementations' input, weights and outputs


@pytest.fixture(scope="session")
def published(vectors: Path) -> Callable[[str], dict[str, Tensor]]:
    """Function: the numbers of one published implementation by name."""

    def read(name: str) -> dict[str, Tensor]:
        numbers = np.load(vectors / f"{name}.npz")
        return {key: torch.from_numpy(numbers[key]) for key in numbers.files}

    return read


@pytest.fixture(scope="session")
def published_images() -> Tensor:
    """Two images ``(2, 3, 224, 224)``."""
    pixels = np.random.RandomState(0).standard_normal((2, 3, 224, 224))
    return torch.from_numpy(pixels.astype(np.float32))


@pytest.fixture(scope="session")
def with_published_weights(vectors: Path) -> Callable[..., dynavit.PrunedViT]:
    """Function: options of create_model to a small pruned model with the published weights, in eval mode."""
    weights = load_file(vectors / "dynamicvit_tiny.safetensors")
    backbone = {name: value for name, value in weights.items() if not name.startswith("score_predictor.")}

    def make(**options: Any) -> dynavit.PrunedViT:
        model = dynavit.create_model("vit_tiny_patch16_224", **{**_PUBLISHED_SIZE, **options})
        model.backbone.load_state_dict(backbone)
        return model.eval()

    return make
