"""From a picture to the normalised tensor that a model wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import v2

from dynavit.data.augmentation import create_augmentation
from dynavit.data.pictures import MODES
from dynavit.errors import InputError, did_you_mean
from dynavit.numbers import is_finite_number

Transform = Callable[[Image.Image], torch.Tensor]

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_CROP_MODES = ("center", "squash", "border")
# a picture is enlarged to its size divided by the crop fraction, all of it in memory
_LONGEST_EDGE, _SMALLEST_CROP = 8192, 0.1


@dataclass(frozen=True)
class Preparation:
    """Turns a picture into a tensor ``(C, H, W)``.

    Attributes:
        steps: what is done with the picture.
        channels: C, and those of the picture: see :func:`dynavit.data.pictures.convert_picture`.
    """

    steps: Transform
    channels: int

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return self.steps(picture)


def image_size_of(preprocessing: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of what a model's preprocessing makes of pictures."""
    size = preprocessing["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def create_transforms(
    image_size: int | Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    crop_mode: str = "center",
    augmentation: Mapping[str, Any] | None = None,
) -> tuple[Preparation, Preparation]:
    """Create the transforms of training and of evaluation images, both timm's.

    Args:
        image_size: height and width, or one number for both; at most 8192.
        mean: subtracted from each channel, for channels in 0..1. There are as many channels as numbers: 1, 3 or 4.
        std: each channel is divided by it.
        interpolation: one of nearest, bilinear, bicubic, box, hamming and lanczos.
        crop_pct: fraction of the resized image's edge that evaluation keeps, from the centre; at least 0.1.
        crop_mode: ``"center"`` keeps the aspect ratio and crops, ``"squash"`` distorts, ``"border"`` pads.
        augmentation: fields of :class:`dynavit.data.augmentation.Augmentation`; those left out have timm's training
            defaults. None trains on exactly what evaluation sees.

    Returns:
        The transforms ``(train, eval)``, from a picture with that many channels to a tensor ``(C, height, width)``.

    Raises:
        InputError: unknown key of ``augmentation``, or a value that cannot work.

    Example:
        >>> train, evaluate = create_transforms(32, (0.5,) * 3, (0.5,) * 3, augmentation={"hflip": 0.0})
        >>> evaluate(Image.new("RGB", (40, 60), "white")).shape
        torch.Size([3, 32, 32])
    """
    height, width = _checked(image_size, mean, std, interpolation)
    if crop_mode not in _CROP_MODES:
        raise InputError(f"crop_mode is one of {', '.join(_CROP_MODES)}, got {crop_mode!r}.")
    if not (is_finite_number(crop_pct) and _SMALLEST_CROP <= crop_pct <= 1):
        raise InputError(f"crop_pct is a fraction from {_SMALLEST_CROP} to 1, got {crop_pct!r}.")
    common: dict[str, Any] = {
        "input_size": (len(mean), height, width),
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": interpolation,
    }
    evaluate = Preparation(create_transform(**common, crop_pct=crop_pct, crop_mode=crop_mode), len(mean))
    if augmentation is None:
        return evaluate, evaluate
    return Preparation(create_augmentation(augmentation, **common), len(mean)), evaluate


def create_reid_transforms(
    image_size: int | Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    flip: float = 0.5,
    pad: int | None = None,
    erase: float = 0.5,
) -> tuple[Preparation, Preparation]:
    """Create the transforms of re-identification (He et al. 2021, TransReID, section 4.2).

    Both distort the image to the given size. Training then mirrors it, shifts it (a black border and a
    random crop), normalises it, and puts noise in the place of a rectangle of 2 to 33 % of its area
    (Zhong et al. 2020, Random Erasing).

    Args:
        image_size: height and width, or one number for both; at most 8192.
        mean: subtracted from each channel, for channels in 0..1. There are as many channels as numbers: 1, 3 or 4.
        std: each channel is divided by it.
        interpolation: one of nearest, bilinear, bicubic, box, hamming and lanczos.
        flip: probability of mirroring left and right.
        pad: the largest shift, in pixels of the given size; None is TransReID's, 10 for a height of 256.
        erase: probability of erasing a rectangle.

    Returns:
        The transforms ``(train, eval)``, from a picture with that many channels to a tensor ``(C, height, width)``.

    Raises:
        InputError: a value that cannot work.

    Example:
        >>> train, evaluate = create_reid_transforms((256, 128), (0.5,) * 3, (0.5,) * 3)
        >>> train(Image.new("RGB", (64, 128))).shape
        torch.Size([3, 256, 128])
    """
    height, width = _checked(image_size, mean, std, interpolation)
    for name, value in (("flip", flip), ("erase", erase)):
        if not (is_finite_number(value) and 0 <= value <= 1):
            raise InputError(f"data.augmentation.{name} is a probability in 0..1, got {value!r}.")
    if pad is None:
        pad = round(height * 10 / 256)
    most = max(height, width)
    if not (is_finite_number(pad) and isinstance(pad, int) and 0 <= pad <= most):
        raise InputError(f"data.augmentation.pad is a whole number of pixels from 0 to {most}, got {pad!r}.")
    resize = v2.Resize((height, width), v2.InterpolationMode(interpolation))
    to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    shift = [v2.RandomHorizontalFlip(flip), v2.Pad(pad), v2.RandomCrop((height, width))]
    # erased pixels are standard normal, as the normalised ones around them about are
    noise = v2.RandomErasing(erase, scale=(0.02, 1 / 3), ratio=(0.3, 3.3), value="random")
    return (
        Preparation(v2.Compose([resize, *shift, *to_tensor, noise]), len(mean)),
        Preparation(v2.Compose([resize, *to_tensor]), len(mean)),
    )


def apply_transform(transform: Transform, picture: Image.Image, name: str, what: str) -> torch.Tensor:
    """Apply a transform to a picture; what goes wrong is not the picture's fault, but the message names it.

    Raises:
        InputError: the transform failed.
    """
    try:
        return transform(picture)
    except Exception as error:  # of timm, torchvision, Pillow or the user
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{name}: {what} failed: {reason}.") from error


def to_pixels(image: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo the normalisation of ``(C, H, W)``: returns ``(H, W, 3)`` uint8, to be looked at, without opacity."""
    channels = image.detach().cpu().float() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    pixels: np.ndarray = (channels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]


def _checked(
    image_size: int | Sequence[int], mean: Sequence[float], std: Sequence[float], interpolation: str
) -> tuple[int, int]:
    """Return height and width.

    Raises:
        InputError: a value that cannot work.
    """
    size = [image_size, image_size] if isinstance(image_size, int) else image_size
    whole = isinstance(size, Sequence) and all(is_finite_number(edge) and edge >= 1 and edge % 1 == 0 for edge in size)
    if not (whole and len(size) == 2 and max(size) <= _LONGEST_EDGE):
        raise InputError(
            f"image_size is height and width in whole pixels, up to {_LONGEST_EDGE:,}, or one number for both, got "
            f"{image_size!r}."
        )
    for name, values in (("mean", mean), ("std", std)):
        if not (isinstance(values, Sequence) and all(map(is_finite_number, values)) and len(values) in MODES):
            raise InputError(f"{name} is 1, 3 or 4 numbers, one for each channel of the pictures, got {values!r}.")
    if len(std) != len(mean) or min(std) <= 0:
        raise InputError(f"std is {len(mean)} numbers above 0, as many as mean has, got {std!r}.")
    if interpolation not in _INTERPOLATIONS:
        raise InputError(
            f"interpolation={interpolation!r}: choose one of {', '.join(_INTERPOLATIONS)}."
            f"{did_you_mean(interpolation, _INTERPOLATIONS)}"
        )
    return int(size[0]), int(size[1])
