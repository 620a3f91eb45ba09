"""From a PIL image of any kind to the normalised tensor that a model wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import v2

from dynavit.errors import InputError, did_you_mean

Transform = Callable[[Image.Image], torch.Tensor]

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_CROP_MODES = ("center", "squash", "border")
_PROBABILITIES = ("hflip", "vflip", "grayscale_prob", "gaussian_blur_prob", "random_erasing")
_16_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images; names and defaults are those of timm's training script.

    Attributes:
        scale: smallest and largest area of the random crop, as a fraction of the image.
        ratio: smallest and largest aspect ratio of the random crop.
        hflip: probability of mirroring left and right.
        vflip: probability of mirroring top and bottom.
        color_jitter: strength; one number, or one each for brightness, contrast, saturation (and hue).
            timm leaves it out where ``auto_augment`` is given, except for 3-Augment.
        grayscale_prob: probability of removing the colours.
        gaussian_blur_prob: probability of blurring.
        auto_augment: timm's policy string, such as ``"rand-m9-mstd0.5-inc1"`` or ``"3a"``.
        random_erasing: probability of erasing a rectangle.
        random_erasing_mode: what is put there: ``"const"``, ``"rand"`` or ``"pixel"``.
    """

    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float | Sequence[float] | None = 0.4
    grayscale_prob: float = 0.0
    gaussian_blur_prob: float = 0.0
    auto_augment: str | None = None
    random_erasing: float = 0.0
    random_erasing_mode: str = "pixel"

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value <= 1):
                raise InputError(f"augmentation.{name} is a probability in 0..1, got {value!r}.")
        for name in ("scale", "ratio"):
            pair = getattr(self, name)
            numbers = isinstance(pair, Sequence) and all(isinstance(number, int | float) for number in pair)
            if not (numbers and len(pair) == 2 and 0 < pair[0] <= pair[1]):
                raise InputError(f"augmentation.{name} is [smallest, largest], got {pair!r}.")
        if isinstance(self.color_jitter, Sequence) and len(self.color_jitter) not in (3, 4):
            raise InputError(
                f"augmentation.color_jitter is one number or 3 to 4 (brightness, contrast, saturation, "
                f"hue), got {self.color_jitter!r}."
            )
        if self.random_erasing_mode not in ("const", "rand", "pixel"):
            raise InputError(
                f"augmentation.random_erasing_mode is const, rand or pixel, got {self.random_erasing_mode!r}."
            )


def create_transforms(
    image_size: int | Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    crop_mode: str = "center",
    augmentation: Mapping[str, Any] | None = None,
) -> tuple[Transform, Transform]:
    """Create the transforms of training and of evaluation images, both timm's.

    Args:
        image_size: height and width, or one number for both.
        mean: subtracted from each channel, for channels in 0..1.
        std: each channel is divided by it.
        interpolation: one of nearest, bilinear, bicubic, box, hamming and lanczos.
        crop_pct: fraction of the resized image's edge that evaluation keeps, from the centre.
        crop_mode: ``"center"`` keeps the aspect ratio and crops, ``"squash"`` distorts, ``"border"`` pads.
        augmentation: fields of :class:`Augmentation`; those left out have timm's training defaults.
            None trains on exactly what evaluation sees.

    Returns:
        The transforms ``(train, eval)``, from PIL image to tensor ``(3, height, width)``.

    Raises:
        InputError: unknown key of ``augmentation``, or a value that cannot work.

    Example:
        >>> train, evaluate = create_transforms(32, (0.5,) * 3, (0.5,) * 3, augmentation={"hflip": 0.0})
        >>> evaluate(Image.new("RGB", (40, 60), "white")).shape
        torch.Size([3, 32, 32])
    """
    if interpolation not in _INTERPOLATIONS:
        raise InputError(
            f"unknown interpolation {interpolation!r}.{did_you_mean(interpolation, _INTERPOLATIONS)} "
            f"Known: {', '.join(_INTERPOLATIONS)}."
        )
    if crop_mode not in _CROP_MODES:
        raise InputError(f"crop_mode is one of {', '.join(_CROP_MODES)}, got {crop_mode!r}.")
    if not 0 < crop_pct <= 1:
        raise InputError(f"crop_pct is a fraction above 0 and at most 1, got {crop_pct!r}.")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    common: dict[str, Any] = {
        "input_size": (3, height, width),
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": interpolation,
    }
    evaluate = create_transform(**common, crop_pct=crop_pct, crop_mode=crop_mode)
    if augmentation is None:
        return evaluate, evaluate
    known = [entry.name for entry in fields(Augmentation)]
    for key in augmentation:
        if key not in known:
            raise InputError(
                f"augmentation has no key {key!r}.{did_you_mean(key, known)} Its keys: {', '.join(known)}."
            )
    options = asdict(Augmentation(**augmentation))
    options["re_prob"] = options.pop("random_erasing")
    options["re_mode"] = options.pop("random_erasing_mode")
    try:
        return create_transform(**common, is_training=True, **options), evaluate
    except Exception as error:  # an unknown policy, a negative strength, text for a number
        raise InputError(
            f"timm cannot build augmentation={dict(augmentation)}: {error!r}. "
            f"Policies are written like 'rand-m9-mstd0.5-inc1', 'augmix-m5-w4-d2' or '3a'."
        ) from None


def create_reid_transforms(
    image_size: int | Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    flip: float = 0.5,
    pad: int | None = None,
    erase: float = 0.5,
) -> tuple[Transform, Transform]:
    """Create the transforms of re-identification (He et al. 2021, TransReID, section 4.2).

    Both distort the image to the given size. Training then mirrors it, shifts it (a black border and a
    random crop), normalises it, and puts noise in the place of a rectangle of 2 to 33 % of its area
    (Zhong et al. 2020, Random Erasing).

    Args:
        image_size: height and width, or one number for both.
        mean: subtracted from each channel, for channels in 0..1.
        std: each channel is divided by it.
        interpolation: one of nearest, bilinear, bicubic, box, hamming and lanczos.
        flip: probability of mirroring left and right.
        pad: the largest shift, in pixels of the given size; None is TransReID's, 10 for a height of 256.
        erase: probability of erasing a rectangle.

    Returns:
        The transforms ``(train, eval)``, from PIL image to tensor ``(3, height, width)``.

    Raises:
        InputError: a value that cannot work.

    Example:
        >>> train, evaluate = create_reid_transforms((256, 128), (0.5,) * 3, (0.5,) * 3)
        >>> train(Image.new("RGB", (64, 128))).shape
        torch.Size([3, 256, 128])
    """
    if interpolation not in _INTERPOLATIONS:
        raise InputError(
            f"unknown interpolation {interpolation!r}.{did_you_mean(interpolation, _INTERPOLATIONS)} "
            f"Known: {', '.join(_INTERPOLATIONS)}."
        )
    for name, value in (("flip", flip), ("erase", erase)):
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            raise InputError(f"augmentation.{name} is a probability in 0..1, got {value!r}.")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if pad is None:
        pad = round(height * 10 / 256)
    if not isinstance(pad, int) or pad < 0:
        raise InputError(f"augmentation.pad is a number of pixels, 0 or more, got {pad!r}.")
    resize = v2.Resize((height, width), v2.InterpolationMode(interpolation))
    to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    shift = [v2.RandomHorizontalFlip(flip), v2.Pad(pad), v2.RandomCrop((height, width))]
    # erased pixels are standard normal, as the normalised ones around them about are
    noise = v2.RandomErasing(erase, scale=(0.02, 1 / 3), ratio=(0.3, 3.3), value="random")
    return v2.Compose([resize, *shift, *to_tensor, noise]), v2.Compose([resize, *to_tensor])


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, decoding it if it is not yet.

    Transparent pixels show a white background; 16 bits of grey become 8 by scaling, not by clipping.

    Example:
        >>> to_rgb(Image.new("I;16", (1, 1), 65535)).getpixel((0, 0))
        (255, 255, 255)
    """
    image.load()
    if image.mode in _16_BIT:
        # Pillow opens some 16-bit files in its 32-bit mode "I"; convert("RGB") would clip them at 255
        grey = np.asarray(image).clip(0, 65535).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_pixels(image: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo the normalisation of ``(3, H, W)``: returns ``(H, W, 3)`` uint8, to be looked at."""
    channels = image.detach().cpu().float() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return (channels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
