"""No draw of an augmentation ends a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from dynavit.data.pictures import convert_picture
from dynavit.data.samples import reproducible
from dynavit.data.transforms import create_reid_transforms, create_transforms
from dynavit.errors import InputError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
SIZES = ((1, 1), (1, 30), (30, 1), (2, 3), (5, 4), (40, 40), (90, 20), (64, 48))
STRONGEST = (
    "rand-m10-p1.0-inc1",
    "rand-m0-p1.0",
    "rand-m30-p1.0-inc1-mmax30",
    "v0-mstd9",
    "v0r-mstd9",
    "original-mstd9",
)


def shipped() -> list[tuple[str, dict[str, Any]]]:
    """Return task and augmentation of every configuration, each once."""
    found = []
    for path in CONFIGS:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        entry = (config.get("task", "classify"), (config.get("data") or {}).get("augmentation"))
        if entry[1] is not None and entry not in found:
            found.append(entry)
    return found


def draw(train: Any, count: int) -> None:
    """Apply a transform to pictures of all sizes; every draw has its own randomness, as in training."""
    pictures = [
        convert_picture(Image.effect_noise(size, 90).convert(mode), train.channels)
        for size in SIZES
        for mode in ("RGB", "L", "RGBA", "P", "1")
    ]
    for index in range(count):
        with reproducible(0, 1, 0, index):
            picture = pictures[index % len(pictures)]
            assert train(picture).shape == (train.channels, 16, 24), (index, picture.size)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "augmentation"), shipped(), ids=str)
@pytest.mark.parametrize("channels", [3, 1])
def test_5000_draws_of_every_shipped_augmentation(task: str, augmentation: dict[str, Any], channels: int) -> None:
    half = (0.5,) * channels
    if task == "reid":
        train, _ = create_reid_transforms((16, 24), half, half, **augmentation)
    else:
        train, _ = create_transforms((16, 24), half, half, augmentation=augmentation)
    draw(train, 5000)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    ["rand-m9-mstd0.5-inc1", "rand-m9-n3-t3aw-inc1", "augmix-m5-w4-d2", "3a", "v0", "v0r", "original", "originalr"],
)
def test_5000_draws_of_every_policy(policy: str) -> None:
    train, _ = create_transforms((16, 24), (0.5,) * 3, (0.5,) * 3, augmentation={"auto_augment": policy})
    draw(train, 5000)


def test_the_draw_that_asked_pillow_for_no_bits() -> None:
    augmentation = {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25}
    train, _ = create_transforms(32, (0.5,) * 3, (0.5,) * 3, augmentation=augmentation)
    with reproducible(0, 1, 0, 696):
        train(Image.new("RGB", (40, 40), (120, 60, 30)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", STRONGEST)
def test_the_strongest_policies(policy: str, channels: int) -> None:
    half = (0.5,) * channels
    draw(create_transforms((16, 24), half, half, augmentation={"auto_augment": policy})[0], 160)


@pytest.mark.parametrize("options", [{}, {"scale": [0.001, 0.002]}, {"ratio": [3.0, 4.0]}, {"ratio": [0.1, 0.2]}])
def test_pictures_of_a_few_pixels(options: dict[str, Any]) -> None:
    for half in ((0.5,), (0.5,) * 3, (0.5,) * 4):
        draw(create_transforms((16, 24), half, half, augmentation={"random_erasing": 1.0, **options})[0], 120)


@pytest.mark.parametrize(
    "options", [{"auto_augment": "3a"}, {"grayscale_prob": 0.1}, {"color_jitter": [0.1, 0.1, 0.1, 0.1]}]
)
def test_what_does_not_work_with_opacity_is_refused_at_the_start(options: dict[str, Any]) -> None:
    half = (0.5,) * 4
    with pytest.raises(InputError, match=rf"augmentation\.{next(iter(options))}=.*takes 4"):
        create_transforms(16, half, half, augmentation=options)
