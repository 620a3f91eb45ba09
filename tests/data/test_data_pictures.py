from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dynavit.data.pictures import MODES, UNREADABLE, convert_picture, open_picture, read_picture


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
def test_colours(image: Image.Image, expected: tuple[int, int, int]):
    converted = convert_picture(image)
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
def test_of_files(image: Image.Image, expected: tuple[int, int, int]):
    np.testing.assert_allclose(
        convert_picture(image).getpixel((0, 0)), expected, atol=3 if image.format == "JPEG" else 0
    )


def test_16_bits_become_8_evenly():
    ramp = Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256))
    grey = np.asarray(convert_picture(ramp))[..., 0].reshape(-1)
    np.testing.assert_array_equal(grey, np.round(np.arange(65536) / 257))


def test_decodes_so_that_a_cut_file_fails_here():
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 90).convert("RGB").save(buffer, "PNG")
    cut = Image.open(io.BytesIO(buffer.getvalue()[:2000]))
    with pytest.raises(OSError, match="truncated"):
        convert_picture(cut)


def grey_tiff(values: np.ndarray, tags: dict[int, Any] | None = None) -> Image.Image:
    return saved(Image.fromarray(values), "TIFF", tiffinfo=tags or {})


def twelve_bits(values: list[int]) -> Image.Image:
    """A TIFF file of one row of 12-bit values, two in three bytes."""
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in zip(values[::2], values[1::2], strict=True)
    )
    tags = [(256, 4, len(values)), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (277, 3, 1), (278, 4, 1)]
    tags += [(273, 4, 8 + 2 + 12 * 9 + 4), (279, 4, len(packed))]
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + (struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value))
        for tag, kind, value in sorted(tags)
    )
    return Image.open(io.BytesIO(b"II*\0\x08\0\0\0" + struct.pack("<H", 9) + entries + bytes(4) + packed))


def pgm(most: int, values: list[int]) -> Image.Image:
    data = np.array(values, dtype=">u2" if most > 255 else "u1").tobytes()
    return Image.open(io.BytesIO(f"P5 {len(values)} 1 {most}\n".encode() + data))


def levels(image: Image.Image) -> list[int]:
    return np.asarray(convert_picture(image, 1)).ravel().tolist()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (grey_tiff(np.array([[0, 257, 65535]], dtype=np.uint16)), [0, 1, 255]),
        (grey_tiff(np.array([[0, 65535]], dtype=np.uint16), {262: 0}), [255, 0]),  # least is white
        (grey_tiff(np.array([[0, 4095]], dtype=np.uint16), {281: 4095}), [0, 255]),
        (grey_tiff(np.array([[100, 600]], dtype=np.uint16), {280: 100, 281: 1100}), [0, 128]),
        (grey_tiff(np.array([[0, 0.5, 1]], dtype=np.float32), {340: 0.0, 341: 1.0}), [0, 128, 255]),
        (grey_tiff(np.array([[-1, 1]], dtype=np.float32), {340: -1.0, 341: 1.0}), [0, 255]),
        (grey_tiff(np.array([[0, 10**6]], dtype=np.int32), {340: 0, 341: 2 * 10**6}), [0, 128]),
        (twelve_bits([0, 4095, 2048, 16]), [0, 255, 128, 1]),
        (pgm(15, [0, 5, 15]), [0, 85, 255]),
        (pgm(1023, [0, 512, 1023]), [0, 128, 255]),
        (pgm(65535, [0, 65535]), [0, 255]),
        (saved(Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16)), "PNG"), [0, 128, 255]),
        (saved(Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16)), "JPEG2000"), [0, 128, 255]),
        (Image.fromarray(np.array([[9, 9]], dtype=np.uint16)), [0, 0]),  # all alike: dark is what it may be
    ],
)
def test_a_known_range_is_scaled(image: Image.Image, expected: list[int]) -> None:
    assert levels(image) == expected


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.fromarray(np.array([[0, 1]], dtype=np.float32)), r"mode F\) go from 0 to 1,"),
        (grey_tiff(np.array([[40.5, 220]], dtype=np.float32)), r"mode F\) go from 40.5 to 220,"),
        (grey_tiff(np.array([[0, 65535]], dtype=np.float32)), r"from 0 to 65535,"),
        (grey_tiff(np.array([[0, np.nan]], dtype=np.float32), {340: 0.0, 341: 1.0}), "from nan to nan"),
        (grey_tiff(np.array([[0, np.inf]], dtype=np.float32)), "from 0 to inf"),
        (grey_tiff(np.array([[0, 3]], dtype=np.float32), {340: 0.0, 341: 1.0}), "from 0 to 3,"),  # the tags are wrong
        (grey_tiff(np.array([[0, 200]], dtype=np.int32)), r"mode I\) go from 0 to 200,"),
        (Image.fromarray(np.array([[-5, 200]], dtype=np.int32)), r"mode I\) go from -5 to 200,"),
        (Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "from 0 to 70000"),
        (Image.fromarray(np.array([[0, 255]], dtype=np.uint16)), "from 0 to 255,"),  # would be black
        (grey_tiff(np.array([[7, 4095]], dtype=np.uint16)), r"mode I;16\) go from 7 to 4095,"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_unknown_range_is_never_black_or_white(image: Image.Image, said: str, channels: int) -> None:
    with pytest.raises(ValueError, match=said + r".*save the picture with 8 bits"):
        convert_picture(image, channels)


ALL_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
ALL_MODES += ("I", "I;16", "I;16L", "I;16B", "I;16N")


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode(mode: str, channels: int) -> None:
    picture = convert_picture(Image.new(mode, (3, 2)), channels)
    assert (picture.mode, picture.size) == (MODES[channels], (3, 2))


def test_opacity_is_kept_by_4_channels_alone() -> None:
    half = filled("RGBA", (255, 0, 0, 51))
    assert convert_picture(half, 4).getpixel((0, 0)) == (255, 0, 0, 51)
    assert convert_picture(filled("L", 9), 4).getpixel((0, 0)) == (9, 9, 9, 255)
    assert convert_picture(filled("LA", (0, 51)), 1).getpixel((0, 0)) == 204


def upright() -> np.ndarray:
    """Return 16 x 24 pixels, no two quarters of which are alike."""
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[:8, :12] = (240, 30, 30)
    pixels[:8, 12:] = (30, 240, 30)
    pixels[8:, :12] = (30, 30, 240)
    return pixels


def lying(tag: int, format: str) -> Image.Image:
    """Return the file of a picture whose pixels lie as a camera with this tag leaves them."""
    turned = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1),
    }[tag]  # fmt: skip
    exif = Image.Exif()
    exif[274] = tag
    options = {"quality": 95} if format in ("JPEG", "WEBP", "AVIF") else {}
    return saved(Image.fromarray(np.ascontiguousarray(turned(upright()))), format, exif=exif, **options)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_pictures_are_upright(tag: int, format: str) -> None:
    for image in (lying(tag, format), lying(tag, format).convert("RGB")):  # torchvision's sets convert by themselves
        picture = convert_picture(image)
        assert np.abs(np.asarray(picture).astype(int) - upright()).mean() < 12
        assert convert_picture(picture) is picture  # and are not turned again


def test_an_orientation_beside_tags_that_cannot_be_read_or_written() -> None:
    damaged = saved(filled("RGB", 0), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff rubbish")
    assert convert_picture(damaged).size == (2, 2)
    strange = lying(6, "JPEG")
    strange.getexif()[0x9286] = object()
    assert convert_picture(strange).size == (24, 16)


def test_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for ending in ("gif", "webp", "png"):
        options = {"lossless": True} if ending == "webp" else {}
        frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **options)
        assert read_picture(tmp_path / f"a.{ending}").getpixel((0, 0)) == (255, 0, 0)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # reading it would never end
    for name in ("pipe.png", ".", "missing.png", "/dev/zero"):
        with pytest.raises(UNREADABLE):
            open_picture(tmp_path / name)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "GIF", "WEBP", "BMP", "TGA", "PPM", "JPEG2000"])
def test_damaged_files_are_unreadable_whatever_pillow_raises(format: str) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((24, 24), 90).convert("RGB").save(buffer, format)
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy()
        data[rng.integers(0, min(len(data), 200), 4)] = rng.integers(0, 256, 4)
        try:
            picture = read_picture(io.BytesIO(data[: rng.integers(1, len(data))].tobytes()))
        except UNREADABLE:
            continue
        assert picture.mode == "RGB"
