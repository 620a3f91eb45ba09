"""Cluttered digits: a real image-classification problem that needs no download and no data file.

Handwritten digits (UCI, as packaged by scikit-learn: 1,797 images of 8 x 8) are drawn at a random
place, size, angle and colour on a 64 x 64 RGB canvas, over fragments of *other* digits. The protocol
is the cluttered MNIST of Mnih et al. 2014 (https://arxiv.org/abs/1406.6247, section 4) and
Jaderberg et al. 2015 (https://arxiv.org/abs/1506.02025, appendix A.3).

Most of the canvas carries no label information, and which part does is known exactly, so that one
can see whether a selector keeps the right tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

CANVAS = 64
CLASS_NAMES: Sequence[str] = tuple(str(digit) for digit in range(10))
_FRAGMENT = 10
_TEST_EVERY = 5


class ClutteredDigits(Dataset[tuple[Any, int]]):
    """Digits on cluttered canvases, drawn on demand from ``(seed, epoch, index)`` alone.

    Training canvases are new in every epoch (:meth:`set_epoch`); test canvases never change. The
    two splits share no digit image, neither as a target nor as a fragment.

    Args:
        train: which split.
        size: number of canvases in an epoch.
        fragments: most fragments on a canvas; their number is uniform in ``0..fragments``.
        seed: seed of the drawing.
        transform: applied to the PIL image.
    """

    def __init__(
        self,
        train: bool,
        size: int | None = None,
        fragments: int = 6,
        seed: int = 0,
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        from sklearn.datasets import load_digits  # a large import, needed by this data set alone

        digits = load_digits()
        is_test = np.arange(len(digits.target)) % _TEST_EVERY == 0
        chosen = np.flatnonzero(is_test != train)
        self.ink = (digits.images[chosen] * (255 / 16)).astype(np.uint8)
        self.labels = digits.target[chosen].astype(int)
        self.train = train
        self.size = size or (12_800 if train else 2_000)
        self.fragments = fragments
        self.seed = seed
        self.transform = transform
        self.epoch = 0

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Draw new training canvases; the test split ignores it."""
        self.epoch = epoch if self.train else 0

    def __getitem__(self, index: int) -> tuple[Any, int]:
        canvas, _, label = self.draw(index)
        image = Image.fromarray(canvas)
        return (self.transform(image) if self.transform else image), label

    def foreground(self, index: int) -> np.ndarray:
        """Return the ``(64, 64)`` boolean mask of the pixels that the target digit covers."""
        return self.draw(index)[1]

    def draw(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return canvas ``(64, 64, 3)`` uint8, foreground mask ``(64, 64)`` bool and label."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, int(self.train), self.epoch, index))
        canvas = _background(rng)
        target = int(rng.integers(len(self.labels)))
        for _ in range(int(rng.integers(self.fragments + 1))):
            other = _render(self.ink[rng.integers(len(self.ink))], rng)
            _paint(canvas, _crop(other, rng), rng)
        mask = _paint(canvas, _render(self.ink[target], rng), rng)
        return (canvas * 255).astype(np.uint8), mask, int(self.labels[target])


def _background(rng: np.random.Generator) -> np.ndarray:
    """A dark colour with a linear gradient and pixel noise."""
    base = rng.uniform(0.0, 0.2) + rng.uniform(0.0, 0.1, 3)
    slope_y, slope_x = rng.uniform(-0.05, 0.05, (2, 3))
    ramp = np.linspace(-1, 1, CANVAS)[:, None]
    canvas = (base + (ramp * slope_y)[:, None] + (ramp * slope_x)[None]).astype(np.float32)
    canvas += 0.03 * rng.standard_normal((CANVAS, CANVAS, 1), dtype=np.float32)
    return np.asarray(canvas.clip(0, 1))


def _render(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Enlarge an 8 x 8 digit to 34-42 pixels with a random angle and shear; returns alpha."""
    size = int(rng.integers(34, 43))
    angle, shear = rng.uniform(-0.25, 0.25), rng.uniform(-0.2, 0.2)
    scale = 8 / size
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    # maps output pixels to input pixels, about the two centres
    a, b, d, e = cos, sin + shear * scale, -sin, cos
    centre = (size - 1) / 2
    matrix = (a, b, 3.5 - (a + b) * centre, d, e, 3.5 - (d + e) * centre)
    image = Image.fromarray(ink).transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32) / 255


def _crop(alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A 10 x 10 piece centred on a pixel that carries ink."""
    inked = np.argwhere(alpha > 0.5)
    y, x = inked[rng.integers(len(inked))] if len(inked) else (0, 0)
    top = int(np.clip(y - _FRAGMENT // 2, 0, alpha.shape[0] - _FRAGMENT))
    left = int(np.clip(x - _FRAGMENT // 2, 0, alpha.shape[1] - _FRAGMENT))
    return alpha[top : top + _FRAGMENT, left : left + _FRAGMENT]


def _paint(canvas: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blend ``alpha`` in a bright colour at a random place; returns the boolean mask it covers."""
    size = alpha.shape[0]
    top, left = rng.integers(0, CANVAS - size + 1, 2)
    window = np.s_[top : top + size, left : left + size]
    colour = (rng.uniform(0.7, 1.0) - rng.uniform(0.0, 0.2, 3)).astype(np.float32)
    canvas[window] += alpha[..., None] * (colour - canvas[window])
    mask = np.zeros((CANVAS, CANVAS), dtype=bool)
    mask[window] = alpha > 0.3
    return mask
