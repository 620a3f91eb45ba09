"""Synthetic identities in three spectra: a multi-spectral re-identification problem that needs no download.

The made-up people of :mod:`dynavit.data.quickstart_reid` again, each sample in colour, in near infrared and in thermal
infrared, in the same pose at the same place. Reflectance in infrared has nothing to do with colour: textures and badges
are others there; a thermal camera sees how warm somebody's clothes and skin are, and something hot or cold that is worn
under the shirt, in front of a cool and blurred scene.

People come in families of four of one build, hair, sleeves and trousers, who differ from the first one in a single
spectrum: the second in colour (shirt, texture, badge), the third in near infrared (likewise), the fourth in thermal
infrared (warmth of the shirt, what is under it). So two of a family can be told apart in one spectrum or in two, and a
model that leaves one out confuses them. In three of ten samples one spectrum is bad: colour is dark, near infrared has
glare, or thermal infrared hardly any contrast.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynavit.data.quickstart_reid import (
    BADGES,
    CAMERAS,
    HEIGHT,
    LOOKS,
    PICTURES,
    SWAY,
    TEST,
    TEXTURES,
    TRAIN,
    WIDTH,
    Array,
    Camera,
    Looks,
    SyntheticIdentities,
    develop,
    draw_looks,
    draw_scene,
    occlude,
    paint_box,
    paint_person,
)

SPECTRA = ("colour", "near infrared", "thermal infrared")
FAMILY = 4
_COLOUR, _NEAR, _THERMAL = range(3)
_BAD = 0.3  # share of samples with a bad spectrum
_GREY = Camera((0.95, 0.95, 0.95), 0.0, 1.0, 0, 1.0, 0)  # its view is that of the sample's own camera
_GLARE = 16  # radius


class SyntheticSpectra(SyntheticIdentities):
    """Samples of people ``((image, image, image), identity)``, one image a spectrum, drawn on demand.

    Splits, identities, cameras and arguments are those of :class:`SyntheticIdentities`; identities come in families of
    four, so the default numbers are 100 and 48.

    Args:
        train: which split.
        num_identities: default 100 in training, 48 for testing.
        images_per_identity: training samples of a person in an epoch, by each camera in turn.
        gallery_per_camera: gallery samples of a person by one camera.
        seed: of the drawing.

    Attributes:
        spectral: of every identity its looks in each spectrum.
    """

    def __init__(
        self,
        train: bool,
        num_identities: int | None = None,
        images_per_identity: int = 12,
        gallery_per_camera: int = 3,
        seed: int = 0,
    ) -> None:
        count = (100 if train else 48) if num_identities is None else num_identities
        super().__init__(train, count, images_per_identity, gallery_per_camera, seed)
        self._split = TRAIN if train else TEST
        self.spectral = [_spectral_looks((seed, self._split, LOOKS), who) for who in range(count)]
        cameras = enumerate(CAMERAS)
        self._scenes_of = [
            [self._scenes[number], draw_scene(100 + number, camera), draw_scene(200 + number, camera)]
            for number, camera in cameras
        ]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pictures, _, identity = self.draw(index)
        return tuple(Image.fromarray(picture) for picture in pictures), identity

    def draw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_], int]:
        """Return pictures ``(3, 96, 48, 3)`` uint8, foreground mask ``(96, 48)`` bool and identity."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        entropy = (self.seed, self._split, PICTURES, self.epoch, index)
        extra = np.random.default_rng((*entropy, 1))
        bad = int(extra.integers(len(SPECTRA))) if extra.random() < _BAD else None
        glare = extra.integers((HEIGHT // 4, WIDTH // 4), (3 * HEIGHT // 4, 3 * WIDTH // 4))
        identity = self.identities[index]
        drawn = [self._draw(index, spectrum, entropy) for spectrum in range(len(SPECTRA))]
        for spectrum, (canvas, _) in enumerate(drawn):
            if spectrum == bad:
                _spoil(canvas, spectrum, glare)
        kinds = (CAMERAS[self.cameras[index]], _GREY, _GREY)
        pictures = [develop(canvas, camera, extra) for camera, (canvas, _) in zip(kinds, drawn, strict=True)]
        pictures[1:] = [picture[..., :1].repeat(3, axis=-1) for picture in pictures[1:]]
        return np.stack(pictures), drawn[0][1], identity

    def _draw(self, index: int, spectrum: int, entropy: tuple[int, ...]) -> tuple[Array, NDArray[np.bool_]]:
        """Return what is there to be seen in a spectrum, ``(96, 48, 3)``, and where the person is."""
        identity, number = self.identities[index], self.cameras[index]
        rng = np.random.default_rng(entropy)  # the same for all: pose, place and what is in front agree
        left = int(self._places[identity, number] + rng.integers(-SWAY, SWAY + 1))
        top = int(rng.integers(SWAY + 1))
        canvas = self._scenes_of[number][spectrum][top : top + HEIGHT, left : left + WIDTH].copy()
        for _ in range(int(rng.integers(3))):
            paint_box(canvas, rng, int(rng.integers(4, 14)), int(rng.integers(4, 24)))
        if spectrum == _THERMAL:
            canvas = 0.08 + 0.3 * _grey(canvas)
        person = paint_person(canvas, self.spectral[identity][spectrum], CAMERAS[number], rng)
        if rng.random() < 0.35:
            hidden = occlude(canvas, rng)
            person &= ~hidden
            if spectrum == _THERMAL:
                canvas[hidden] *= 0.4
        if spectrum == _NEAR:
            canvas = _grey(canvas)
        return (_blurred(canvas) if spectrum == _THERMAL else canvas), person


def _spectral_looks(entropy: tuple[int, ...], who: int) -> tuple[Looks, Looks, Looks]:
    family, member = divmod(who, FAMILY)
    drawn = [np.random.default_rng((*entropy, family, spectrum, member == spectrum + 1)) for spectrum in range(3)]
    body = draw_looks(np.random.default_rng((*entropy, family)))
    return _colour(body, drawn[_COLOUR]), _near_infrared(body, drawn[_NEAR]), _thermal(body, drawn[_THERMAL])


def _colour(body: Looks, rng: np.random.Generator) -> Looks:
    drawn = draw_looks(rng)
    names = ("shirt", "texture", "period", "angle", "badge", "badge_colour", "badge_at")
    return replace(body, **{name: getattr(drawn, name) for name in names})


def _near_infrared(body: Looks, rng: np.random.Generator) -> Looks:
    drawn, (dark, light) = draw_looks(rng), rng.permuted((rng.uniform(0.1, 0.4), rng.uniform(0.6, 0.95)))
    return replace(
        body,
        shirt=np.stack([_even(dark), _even(light)]),
        texture=str(rng.choice(TEXTURES[1:])),
        period=drawn.period,
        angle=drawn.angle,
        badge=drawn.badge,
        badge_at=drawn.badge_at,
        badge_colour=_even(float(rng.choice((0.05, 0.5, 1.0)))),
        trousers=_grey(body.trousers),
        shoes=_even(0.3),
        skin=_even(0.75),
        hair=_even(0.45),
        bag=None if body.bag is None else _grey(body.bag),
    )


def _thermal(body: Looks, rng: np.random.Generator) -> Looks:
    return replace(
        body,
        shirt=np.stack([_even(rng.uniform(0.4, 0.75))] * 2),
        texture="plain",
        badge=str(rng.choice(BADGES)),
        badge_at=(float(rng.choice((-0.07, 0.0, 0.07))), float(rng.choice((0.26, 0.40)))),
        badge_colour=_even(float(rng.choice((0.1, 1.0)))),
        trousers=_even(0.5),
        shoes=_even(0.3),
        skin=_even(0.95),
        hair=_even(0.65),
        bag=None if body.bag is None else _even(0.25),
    )


def _even(value: float) -> Array:
    return np.full(3, value, np.float32)


def _grey(colours: Array) -> Array:
    """Return colours ``(..., 3)`` as greys."""
    return np.repeat(colours.mean(axis=-1, keepdims=True), 3, axis=-1)


def _blurred(canvas: Array) -> Array:
    """Return the mean of each pixel and its eight neighbours."""
    padded = np.pad(canvas, ((1, 1), (1, 1), (0, 0)), mode="edge")
    windows = [padded[row : row + HEIGHT, column : column + WIDTH] for row in range(3) for column in range(3)]
    return np.asarray(np.mean(windows, axis=0), np.float32)


def _spoil(canvas: Array, spectrum: int, glare: NDArray[np.int64]) -> None:
    """Make a spectrum hard to see anything in."""
    if spectrum == _COLOUR:
        canvas *= 0.15
    elif spectrum == _NEAR:
        rows, columns = np.ogrid[:HEIGHT, :WIDTH]
        canvas[(rows - glare[0]) ** 2 + (columns - glare[1]) ** 2 < _GLARE**2] = 1.0
    else:
        canvas[...] = 0.4 + 0.15 * (canvas - 0.4)
