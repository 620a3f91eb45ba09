from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from dynavit.data.samples import reproducible
from dynavit.data.transforms import create_transforms, to_rgb
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
    assert repr(ours) == repr(timms)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "3a", "original"])
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
        ({"color_jitter": -1.0}, "timm cannot build .*non negative"),
        ({"random_erasing_mode": "pixels"}, "const, rand or pixel"),
        ({"auto_augment": "best"}, "timm cannot build .*'best'"),
    ],
)
def test_refused_augmentations(augmentation: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        create_transforms(32, ZERO, ONE, augmentation=augmentation)


def test_refused_preprocessing():
    with pytest.raises(InputError, match="Did you mean 'bicubic'"):
        create_transforms(32, ZERO, ONE, interpolation="bicubik")
    with pytest.raises(InputError, match="crop_pct"):
        create_transforms(32, ZERO, ONE, crop_pct=0.0)  # timm would silently take 0.875


def palette(transparent: int | None) -> Image.Image:
    """Index 0 is red, index 1 is (0, 90, 200)."""
    image = Image.new("P", (2, 2), 1)
    image.putpalette([255, 0, 0, 0, 90, 200])
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def filled(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (2, 2), value)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (filled("RGB", (1, 2, 3)), (1, 2, 3)),
        (filled("1", 1), (255, 255, 255)),
        (filled("L", 100), (100, 100, 100)),
        (filled("LA", (100, 255)), (100, 100, 100)),
        (filled("LA", (0, 51)), (204, 204, 204)),  # a fifth black, four fifths of the white behind it
        (filled("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (filled("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (filled("RGBA", (255, 0, 0, 51)), (255, 204, 204)),
        (palette(None), (0, 90, 200)),
        (palette(0), (0, 90, 200)),
        (palette(1), (255, 255, 255)),
        (filled("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        (filled("CMYK", (0, 0, 0, 255)), (0, 0, 0)),
        (filled("YCbCr", (76, 85, 255)), (254, 0, 0)),
        (filled("I;16", 0), (0, 0, 0)),
        (filled("I;16", 200), (1, 1, 1)),
        (filled("I;16", 128 * 257), (128, 128, 128)),
        (filled("I;16", 65535), (255, 255, 255)),
        (filled("I;16B", 128 * 257), (128, 128, 128)),
        (filled("I", 128 * 257), (128, 128, 128)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_to_rgb_colours(image: Image.Image, expected: tuple[int, int, int]):
    converted = to_rgb(image)
    assert converted.mode == "RGB"
    assert converted.getpixel((1, 1)) == expected


def saved(image: Image.Image, format: str, **options: Any) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (saved(filled("I;16", 25700), "PNG"), (100, 100, 100)),
        (saved(filled("I;16", 25700), "TIFF"), (100, 100, 100)),
        (saved(filled("LA", (7, 255)), "PNG"), (7, 7, 7)),
        (saved(palette(None), "PNG"), (0, 90, 200)),
        (saved(palette(None), "PNG", transparency=b"\xff\x00"), (255, 255, 255)),
        (saved(palette(None), "GIF", transparency=1), (255, 255, 255)),
        (saved(filled("RGB", (9, 8, 7)), "PNG", transparency=(9, 8, 7)), (255, 255, 255)),
        (saved(filled("RGBA", (255, 0, 0, 51)), "PNG"), (255, 204, 204)),
        (saved(filled("CMYK", (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
        (saved(filled("L", 64), "GIF", save_all=True, append_images=[filled("L", 200)]), (64, 64, 64)),
    ],
    ids=lambda value: f"{value.format}-{value.mode}" if isinstance(value, Image.Image) else None,
)
def test_to_rgb_of_files(image: Image.Image, expected: tuple[int, int, int]):
    np.testing.assert_allclose(to_rgb(image).getpixel((0, 0)), expected, atol=3 if image.format == "JPEG" else 0)


def test_16_bits_become_8_evenly():
    ramp = Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256))
    grey = np.asarray(to_rgb(ramp))[..., 0].reshape(-1)
    np.testing.assert_array_equal(grey, np.round(np.arange(65536) / 257))


def test_to_rgb_decodes_so_that_a_cut_file_fails_here():
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 90).convert("RGB").save(buffer, "PNG")
    cut = Image.open(io.BytesIO(buffer.getvalue()[:2000]))
    with pytest.raises(OSError, match="truncated"):
        to_rgb(cut)
