"""Random changes of training images, made by timm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, cast

from PIL import Image
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose

from dynavit.data.policies import check_policy
from dynavit.errors import InputError, did_you_mean
from dynavit.numbers import is_finite_number

_ToBits = Callable[[float, Mapping[str, Any]], tuple[int]]
_PROBABILITIES = ("hflip", "vflip", "grayscale_prob", "gaussian_blur_prob", "random_erasing")
# tiny pictures are enlarged until every crop has a pixel, which must not take all memory
_PAIRS = {"scale": (1e-4, 1.0), "ratio": (0.01, 100.0)}


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
            if not (is_finite_number(value) and 0 <= value <= 1):
                raise InputError(f"data.augmentation.{name} is a probability in 0..1, got {value!r}.")
        for name, (low, high) in _PAIRS.items():
            pair = getattr(self, name)
            if not (_are_numbers(pair) and len(pair) == 2 and low <= pair[0] <= pair[1] <= high):
                raise InputError(
                    f"data.augmentation.{name} is [smallest, largest], from {low:g} to {high:g}, got {pair!r}."
                )
        jitter = self.color_jitter
        strengths = jitter if isinstance(jitter, Sequence) else [0 if jitter is None else jitter] * 3
        if not (
            _are_numbers(strengths)
            and len(strengths) in (3, 4)
            and min(strengths) >= 0
            and (len(strengths) == 3 or strengths[3] <= 0.5)
        ):
            raise InputError(
                f"data.augmentation.color_jitter is one number, 0 or more, or 3 to 4 (brightness, contrast, "
                f"saturation, and hue up to 0.5), got {jitter!r}; null leaves it out."
            )
        if self.auto_augment is not None:
            check_policy("data.augmentation.auto_augment", self.auto_augment)
        if self.random_erasing_mode not in ("const", "rand", "pixel"):
            raise InputError(
                f"data.augmentation.random_erasing_mode is const, rand or pixel, got {self.random_erasing_mode!r}."
            )


def create_augmentation(options: Mapping[str, Any], **preprocessing: Any) -> Compose:
    """Create timm's transform of training images.

    Two things are not as in timm, where they end the training: pictures of a few pixels are enlarged, so that a crop
    of them has at least one, and posterizing leaves at least one bit, since Pillow 13 refuses 0.

    Args:
        options: fields of :class:`Augmentation`; those left out have its defaults.
        preprocessing: timm's ``input_size``, ``mean``, ``std`` and ``interpolation``.

    Raises:
        InputError: unknown key, or a value that cannot work.
    """
    known = [entry.name for entry in fields(Augmentation)]
    for key in options:
        if key not in known:
            raise InputError(
                f"data.augmentation has no key {key!r}.{did_you_mean(key, known)} Its keys: {', '.join(known)}."
            )
    chosen = Augmentation(**options)
    if preprocessing["input_size"][0] == 4:
        _refuse_opacity(chosen)
    arguments = asdict(chosen)
    arguments["re_prob"] = arguments.pop("random_erasing")
    arguments["re_mode"] = arguments.pop("random_erasing_mode")
    try:
        made: Compose = create_transform(**preprocessing, is_training=True, **arguments)
    except Exception as error:  # the checks above should leave none, but timm changes
        raise InputError(f"timm cannot build data.augmentation={dict(options)}: {error!r}.") from None
    for operation in _operations(made):
        if operation.aug_fn is auto_augment.posterize:
            operation.level_fn = partial(_one_bit_at_least, cast(_ToBits, operation.level_fn))
    return Compose([_Enlarge(chosen.scale[0], chosen.ratio), *made.transforms])


def _refuse_opacity(chosen: Augmentation) -> None:
    hue = isinstance(chosen.color_jitter, Sequence) and len(chosen.color_jitter) == 4
    for name, is_asked in (
        ("auto_augment", chosen.auto_augment),
        ("grayscale_prob", chosen.grayscale_prob),
        ("color_jitter", hue),
    ):
        if is_asked:
            raise InputError(
                f"data.augmentation.{name}={getattr(chosen, name)!r}: works on pictures of 1 or 3 channels, and "
                f"this model takes 4, the last of which is opacity; leave "
                f"{'the hue' if name == 'color_jitter' else 'it'} out."
            )


def _operations(made: Compose) -> Iterator[auto_augment.AugmentOp]:
    for step in made.transforms:
        if isinstance(step, auto_augment.RandAugment | auto_augment.AugMixAugment):
            yield from step.ops
        elif isinstance(step, auto_augment.AutoAugment):
            for policy in step.policy:
                yield from policy


def _one_bit_at_least(bits: _ToBits, level: float, settings: Mapping[str, Any]) -> tuple[int]:
    return (max(bits(level, settings)[0], 1),)


class _Enlarge:
    """Repeat the pixels of pictures so small that timm may round the edge of a crop to 0."""

    def __init__(self, scale: float, ratio: Sequence[float]) -> None:
        longest = max(ratio[1], 1 / ratio[0])
        self.area, self.edge = longest / scale, longest

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        factor = math.ceil(max(math.sqrt(self.area / (width * height)), self.edge / min(width, height)))
        return image if factor == 1 else image.resize((width * factor, height * factor), Image.Resampling.NEAREST)

    def __repr__(self) -> str:
        return f"Enlarge(area={self.area:g}, edge={self.edge:g})"


def _are_numbers(values: Any) -> bool:
    return isinstance(values, Sequence) and all(map(is_finite_number, values))
