from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from dynavit.data.samples import reproducible
from dynavit.data.transforms import apply_transform, create_reid_transforms, create_transforms, to_pixels
from dynavit.errors import InputError

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
STILL = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "color_jitter": None}
"""An augmentation that changes nothing, to switch on one thing at a time."""


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with reproducible(0):
        yield


def quadrants(size: int = 32) -> Image.Image:
    """Red, green / blue, white."""
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    half = size // 2
    pixels[:half, :half, 0] = pixels[:half, half:, 1] = pixels[half:, :half, 2] = 255
    pixels[half:, half:] = 255
    return Image.fromarray(pixels)


def corners(image: torch.Tensor) -> list[tuple[int, ...]]:
    """Return the colours at top left, top right, bottom left and bottom right."""
    return [tuple(image[:, y, x].int().tolist()) for y in (2, -3) for x in (2, -3)]


def train_transform(**augmentation: Any) -> Callable[[Image.Image], torch.Tensor]:
    return create_transforms(32, ZERO, ONE, augmentation=STILL | augmentation)[0]


def test_evaluation_normalises_with_mean_and_std():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    _, evaluate = create_transforms(16, mean, std)
    image = evaluate(Image.new("RGB", (20, 30), (51, 102, 255)))
    expected = [(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, (1.0 - 0.3) / 2.0]
    torch.testing.assert_close(image.mean((1, 2)), torch.tensor(expected))


def test_image_size_is_height_and_width():
    for augmentation in (None, {}):
        for transform in create_transforms((16, 48), ZERO, ONE, augmentation=augmentation):
            assert transform(quadrants(64)).shape == (3, 16, 48)


def test_crop_pct_keeps_the_centre():
    image = Image.new("RGB", (64, 64), "red")
    image.paste(Image.new("RGB", (36, 36), "blue"), (14, 14))
    _, whole = create_transforms(32, ZERO, ONE)
    _, centre = create_transforms(32, ZERO, ONE, crop_pct=0.5)
    assert whole(image)[0].max() > 0.9
    assert centre(image)[0].max() < 0.1


def test_interpolation_is_used():
    results = [create_transforms(32, ZERO, ONE, interpolation=name)[1](quadrants(8)) for name in ("nearest", "bicubic")]
    assert not torch.equal(*results)


def test_no_augmentation_trains_on_what_evaluation_sees():
    train, evaluate = create_transforms(24, ZERO, ONE, crop_pct=0.8)
    image = quadrants(40)
    assert torch.equal(train(image), evaluate(image))


def test_without_random_changes_nothing_moves():
    red, green, blue, white = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)
    assert corners(train_transform()(quadrants())) == [red, green, blue, white]


@pytest.mark.parametrize(
    ("flip", "expected"),
    [
        ("hflip", [(0, 1, 0), (1, 0, 0), (1, 1, 1), (0, 0, 1)]),
        ("vflip", [(0, 0, 1), (1, 1, 1), (1, 0, 0), (0, 1, 0)]),
    ],
)
def test_flips(flip: str, expected: list[tuple[int, ...]]):
    assert corners(train_transform(**{flip: 1.0})(quadrants())) == expected


def test_scale_crops():
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (1, 32, 3)))
    assert np.ptp(train_transform()(ramp).numpy()) > 0.9
    views = [train_transform(scale=(0.1, 0.2))(ramp) for _ in range(8)]
    assert all(np.ptp(view.numpy()) < 0.6 for view in views)  # at most 15 of the 32 rows
    assert len({float(view.mean()) for view in views}) > 1


def test_color_jitter_grayscale_and_blur():
    image = quadrants()
    still = train_transform()(image)
    grey = train_transform(grayscale_prob=1.0)(image)
    assert torch.equal(grey[0], grey[1])
    assert not torch.allclose(train_transform(color_jitter=0.9)(image), still, atol=1e-3)
    assert not torch.allclose(train_transform(gaussian_blur_prob=1.0)(image), still, atol=1e-3)


def test_random_erasing_fills_a_rectangle():
    white = Image.new("RGB", (32, 32), "white")
    erased = train_transform(random_erasing=1.0, random_erasing_mode="const")(white)
    assert 0 < (erased == 0).float().mean() < 0.5
    noise = train_transform(random_erasing=1.0)(white)
    assert ((noise != 0) & (noise != 1)).any()  # timm's training script fills with noise, pixel by pixel


def test_left_out_keys_have_timms_defaults():
    timms = create_transform(32, is_training=True, mean=ZERO, std=ONE, interpolation="bicubic")
    ours, _ = create_transforms(32, ZERO, ONE, augmentation={})
    assert repr(ours.steps.transforms[1:]) == repr(timms.transforms)  # before them, tiny pictures are enlarged


@pytest.mark.parametrize(
    "policy", ["rand-m9-mstd0.5-inc1", "rand-t3aw-n3-mmax30-m15-p1", "augmix-m5-w4-d2-a1-b1-mstd0.5", "3a", "original"]
)
def test_auto_augment(policy: str):
    image = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    still = train_transform()(image)
    train = train_transform(auto_augment=policy)
    assert sum(not torch.equal(train(image), still) for _ in range(10)) > 3


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        ({"hflop": 0.5}, r"no key 'hflop'\. Did you mean 'hflip'\? Its keys: scale, ratio, hflip, "),
        ({"hflip": 50}, "augmentation.hflip is a probability"),
        ({"random_erasing": "high"}, "augmentation.random_erasing is a probability"),
        ({"scale": 0.5}, r"augmentation.scale is \[smallest, largest\]"),
        ({"ratio": [2.0, 0.5]}, r"augmentation.ratio is \[smallest, largest\]"),
        ({"color_jitter": [0.1, 0.1]}, "augmentation.color_jitter"),
        ({"color_jitter": "much"}, "augmentation.color_jitter"),
        ({"color_jitter": float("nan")}, "augmentation.color_jitter"),
        ({"scale": [0.1, float("inf")]}, "augmentation.scale"),
        ({"ratio": ["a", "b"]}, "augmentation.ratio"),
        ({"hflip": True}, "augmentation.hflip"),
        ({"scale": [1e-12, 1.0]}, r"data\.augmentation\.scale .*from 0\.0001 to 1, got"),
        ({"ratio": [1.0, 1e9]}, r"data\.augmentation\.ratio .*from 0\.01 to 100, got"),
        ({"auto_augment": 5}, r"data\.augmentation\.auto_augment=5: is a text, such as 'rand-m9"),
        ({"color_jitter": -1.0}, r"data\.augmentation\.color_jitter is one number, 0 or more, .*got -1\.0; null"),
        ({"color_jitter": [0.1, 0.1, -0.1]}, r"data\.augmentation\.color_jitter .*got \[0\.1, 0\.1, -0\.1\]"),
        ({"color_jitter": [0.1, 0.1, 0.1, 0.6]}, "hue up to 0.5"),
        ({"random_erasing_mode": "pixels"}, "const, rand or pixel"),
        ({"auto_augment": "best"}, r"auto_augment='best': begins with one of rand, augmix, v0, .*; null leaves"),
        ({"auto_augment": ""}, "auto_augment='': begins with one of"),
        ({"auto_augment": "rand-m9-m5"}, "auto_augment='rand-m9-m5': gives 'm' twice"),
        *(
            ({"auto_augment": policy}, f"auto_augment='{policy}': '{policy.split('-')[-1]}' is no part of")
            for policy in (
                *("rand-mx", "rand-m9-foo", "rand-mnan", "rand-m9-n0", "rand-n15", "rand-p1.5", "rand-m9.5", "rand-m"),
                *("rand-tfoo", "rand-inc2", "rand-mstdinf", "rand-m9-", "rand-M9", "rand-m9x", "rand-m999"),
                *("augmix-d", "augmix-n2", "augmix-w0", "original-m9", "v0-mstd", "3a-w"),
            )
        ),
    ],
)
def test_refused_augmentations(augmentation: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        create_transforms(32, ZERO, ONE, augmentation=augmentation)


@pytest.mark.parametrize("create", [create_transforms, create_reid_transforms])
@pytest.mark.parametrize(
    ("key", "values"),
    [
        (
            "image_size",
            [1_000_000, [32, 8193], 0, -4, True, 2.5, "32", None, [32], [32, 0], [32, float("nan")], [8, 8, 8]],
        ),
        ("mean", [None, 0.5, [], [0.5, 0.5], ["a"] * 3, [0.5, float("nan"), 0.5], [float("inf")] * 3]),
        ("std", [[0, 0, 0], [0.5, 0.5, -0.1], [0.5], [0.5] * 4, [0.5, 0.5, float("nan")], "abc", [True] * 3]),
        ("interpolation", ["bicubik", 3, None, ["bicubic"]]),
        ("crop_pct", [1e-6, -1, 0, 1.5, "0.9", float("nan"), None]),  # timm would silently take 0.875 for 0
        ("crop_mode", ["centre", 1, None]),
    ],
)
def test_refused_preprocessing(create: Any, key: str, values: list[Any]):
    if create is create_reid_transforms and key.startswith("crop"):
        return
    for value in values:
        arguments = {"image_size": 32, "mean": ZERO, "std": ONE, key: value}
        with pytest.raises(InputError, match=key):
            create(**arguments)


@pytest.mark.parametrize("pad", [-1, 33, 1.5, True, 10**9])
def test_refused_shifts(pad: Any):
    with pytest.raises(InputError, match=rf"data\.augmentation\.pad .*from 0 to 32, got {pad}\."):
        create_reid_transforms((32, 16), ZERO, ONE, pad=pad)


def test_misspelt_interpolation():
    with pytest.raises(InputError, match="Did you mean 'bicubic'"):
        create_transforms(32, ZERO, ONE, interpolation="bicubik")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("create", [create_transforms, create_reid_transforms])
def test_channels(create: Any, channels: int):
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    picture = Image.new(mode, (40, 30), 51 if channels == 1 else (51, 51, 51, 255)[:channels])
    for transform in create((16, 24), (0.1,) * channels, (0.5,) * channels):
        assert transform.channels == channels
        tensor = transform(picture)
        assert tensor.shape == (channels, 16, 24)
    assert tensor[:3].mean() == pytest.approx((0.2 - 0.1) / 0.5, abs=1e-5)
    seen = to_pixels(tensor, (0.1,) * channels, (0.5,) * channels)
    assert seen.shape == (16, 24, 3)
    assert (seen == 51).all()


def test_what_goes_wrong_in_a_transform_is_one_line_with_the_name():
    def wrong(picture: Image.Image) -> torch.Tensor:
        raise OSError("two\nlines")

    with pytest.raises(InputError, match=r"^a/b\.png: blurring failed: OSError: two lines\.$"):
        apply_transform(wrong, quadrants(), "a/b.png", "blurring")
