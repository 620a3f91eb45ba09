"""Synthetic identities: a re-identification problem that needs no download and no data file.

Made-up people walk past four cameras. Who somebody is shows in a combination of marks: colours of
shirt, trousers, skin, hair and shoes, the shirt's texture, a badge, a bag, short or long clothes.
Every camera has a colour cast, a contrast, a distance and a scene of its own, and sees a person in
front of one part of that scene. So pictures by one camera look alike whoever is on them, which is
why retrieval has to leave out matches by the query's own camera (Zheng et al. 2015, Market-1501,
section 3.2). Most pixels tell nothing about the identity, and which do is known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from dynavit.errors import InputError

HEIGHT, WIDTH = 96, 48
NUM_CAMERAS = 4
TRAIN, TEST = 1, 0  # first words of the entropy, so that no identity is drawn twice
LOOKS, _PLACES, PICTURES = 0, 1, 2  # second words
_PANORAMA = 400  # width of a scene
SWAY = 8  # rows that a scene is higher than a picture

Array = NDArray[np.float32]

_ROWS: Array = np.arange(HEIGHT, dtype=np.float32)[:, None]
_COLUMNS: Array = np.arange(WIDTH, dtype=np.float32)[None, :]
_FABRICS: Array = np.array(
    [
        (0.10, 0.10, 0.12),  # black
        (0.92, 0.92, 0.90),  # white
        (0.78, 0.12, 0.14),  # red
        (0.92, 0.76, 0.16),  # yellow
        (0.13, 0.50, 0.22),  # green
        (0.14, 0.24, 0.66),  # blue
        (0.45, 0.72, 0.90),  # sky blue
        (0.50, 0.20, 0.55),  # purple
        (0.45, 0.29, 0.16),  # brown
        (0.50, 0.50, 0.50),  # grey
    ],
    dtype=np.float32,
)
_SKINS: Array = np.array([(0.93, 0.76, 0.64), (0.78, 0.57, 0.42), (0.55, 0.37, 0.26), (0.33, 0.22, 0.16)], np.float32)
_HAIRS: Array = np.array([(0.08, 0.07, 0.06), (0.35, 0.21, 0.12), (0.80, 0.65, 0.35), (0.60, 0.60, 0.60)], np.float32)
TEXTURES = ("plain", "stripes", "checks", "dots")
BADGES = ("disc", "square", "ring", "cross")


@dataclass(frozen=True)
class Camera:
    """How a camera sees: colours ``offset + gain * x ** gamma``, and from where.

    Attributes:
        gain: of red, green and blue.
        offset: of all three; haze.
        gamma: above 1 darkens.
        size: height of a person in pixels.
        pitch: above 1 looks down on people (large heads, short legs), below 1 up.
        horizon: row where the ground begins.
    """

    gain: tuple[float, float, float]
    offset: float
    gamma: float
    size: float
    pitch: float
    horizon: int


CAMERAS = (
    Camera((1.00, 1.00, 1.00), 0.00, 1.0, 80, 1.00, 60),
    Camera((1.05, 0.85, 0.55), 0.00, 1.2, 68, 1.25, 40),  # evening light, from above
    Camera((0.55, 0.75, 1.00), 0.05, 1.3, 86, 0.90, 72),  # cold and dark, from below
    Camera((0.60, 0.60, 0.50), 0.35, 0.8, 74, 1.10, 50),  # haze
)


@dataclass(frozen=True)
class Looks:
    """What is the same on all pictures of an identity; lengths are in body heights."""

    shirt: Array  # (2, 3) colours
    texture: str
    period: float
    angle: float
    trousers: Array
    shoes: Array
    skin: Array
    hair: Array
    long_hair: bool
    sleeve: float  # where it ends
    hem: float  # where the trousers end
    badge: str
    badge_colour: Array
    badge_at: tuple[float, float]
    bag: Array | None
    build: float


class SyntheticIdentities(Dataset[tuple[Any, int]]):
    """Pictures of people ``(image, identity)``, drawn on demand from ``(seed, epoch, index)`` alone.

    Training pictures are new in every epoch (:meth:`set_epoch`), of the same people in the same
    places; test pictures never change. The two splits share no identity. The test split holds the
    queries, one an identity and camera, and behind them the gallery.

    Args:
        train: which split.
        num_identities: default 100 in training, 50 for testing.
        images_per_identity: training pictures of a person in an epoch, by each camera in turn.
        gallery_per_camera: gallery pictures of a person by one camera.
        seed: of the drawing; the four cameras and their scenes are always the same.
        transform: applied to the PIL image, which is 48 wide and 96 high.

    Attributes:
        identities: of every picture, from 0.
        cameras: of every picture, in 0..3.
        num_query: the test split's first so many pictures are the queries; 0 in training.

    Raises:
        InputError: a size below 1, or below 2 identities.
    """

    def __init__(
        self,
        train: bool,
        num_identities: int | None = None,
        images_per_identity: int = 12,
        gallery_per_camera: int = 3,
        seed: int = 0,
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        count = (100 if train else 50) if num_identities is None else num_identities
        for name, value, least in (
            ("train_identities" if train else "test_identities", count, 2),
            ("images_per_identity", images_per_identity, 1),
            ("gallery_per_camera", gallery_per_camera, 1),
        ):
            if value < least:
                raise InputError(f"data.options.{name} must be at least {least}, got {value}.")
        self.train = train
        self.seed = seed
        self.transform = transform
        self.epoch = 0
        if train:
            self.num_query = 0
            self.identities = [who for who in range(count) for _ in range(images_per_identity)]
            self.cameras = [image % NUM_CAMERAS for _ in range(count) for image in range(images_per_identity)]
        else:
            by_all = [(who, camera) for who in range(count) for camera in range(NUM_CAMERAS)]
            self.num_query = len(by_all)
            pictures = by_all + [seen for seen in by_all for _ in range(gallery_per_camera)]
            self.identities = [who for who, _ in pictures]
            self.cameras = [camera for _, camera in pictures]
        split = TRAIN if train else TEST
        self.looks = [draw_looks(np.random.default_rng((seed, split, LOOKS, who))) for who in range(count)]
        self._places = np.random.default_rng((seed, split, _PLACES)).integers(
            SWAY, _PANORAMA - WIDTH - SWAY, (count, NUM_CAMERAS)
        )
        self._scenes = [draw_scene(number, camera) for number, camera in enumerate(CAMERAS)]

    def __len__(self) -> int:
        return len(self.identities)

    def set_epoch(self, epoch: int) -> None:
        """Draw new training pictures; the test split ignores it."""
        self.epoch = epoch if self.train else 0

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture, _, identity = self.draw(index)
        image = Image.fromarray(picture)
        return (self.transform(image) if self.transform else image), identity

    def foreground(self, index: int) -> NDArray[np.bool_]:
        """Return the ``(96, 48)`` boolean mask of the pixels that show the person."""
        return self.draw(index)[1]

    def draw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_], int]:
        """Return picture ``(96, 48, 3)`` uint8, foreground mask ``(96, 48)`` bool and identity."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, TRAIN if self.train else TEST, PICTURES, self.epoch, index))
        identity, number = self.identities[index], self.cameras[index]
        camera = CAMERAS[number]
        left = int(self._places[identity, number] + rng.integers(-SWAY, SWAY + 1))
        top = int(rng.integers(SWAY + 1))
        canvas = self._scenes[number][top : top + HEIGHT, left : left + WIDTH].copy()
        for _ in range(int(rng.integers(3))):
            paint_box(canvas, rng, int(rng.integers(4, 14)), int(rng.integers(4, 24)))
        person = paint_person(canvas, self.looks[identity], camera, rng)
        if rng.random() < 0.35:
            person &= ~occlude(canvas, rng)
        return develop(canvas, camera, rng), person, identity


def draw_looks(rng: np.random.Generator) -> Looks:
    """Draw how somebody looks."""
    shirt, second = rng.choice(len(_FABRICS), 2, replace=False)
    badge_colour = rng.choice([other for other in range(len(_FABRICS)) if other not in (shirt, second)])

    def fabric(number: int | None = None) -> Array:
        chosen = _FABRICS[rng.integers(len(_FABRICS)) if number is None else number]
        return np.asarray((chosen + rng.uniform(-0.04, 0.04, 3)).clip(0, 1), np.float32)

    return Looks(
        shirt=np.stack([fabric(shirt), fabric(second)]),
        texture=str(rng.choice(TEXTURES, p=(0.16, 0.36, 0.24, 0.24))),
        period=float(rng.choice((0.07, 0.10, 0.14))),
        angle=float(rng.choice(4) * math.pi / 4),
        trousers=fabric(),
        shoes=fabric(),
        skin=_SKINS[rng.integers(len(_SKINS))],
        hair=_HAIRS[rng.integers(len(_HAIRS))],
        long_hair=bool(rng.random() < 0.4),
        sleeve=float(rng.choice((0.30, 0.60))),
        hem=float(rng.choice((0.70, 0.95))),
        badge=str(rng.choice(BADGES)),
        badge_colour=fabric(badge_colour),
        badge_at=(float(rng.choice((-0.07, 0.0, 0.07))), float(rng.choice((0.26, 0.40)))),
        bag=fabric() if rng.random() < 0.5 else None,
        build=float(rng.uniform(0.88, 1.14)),
    )


def draw_scene(number: int, camera: Camera) -> Array:
    """A panorama ``(HEIGHT + SWAY, _PANORAMA, 3)``: wall and ground with things in the colours of clothes."""
    rng = np.random.default_rng(number)
    wall, ground = rng.uniform(0.35, 0.7, (2, 1)) + rng.uniform(-0.1, 0.1, (2, 3))
    panorama = np.empty((HEIGHT + SWAY, _PANORAMA, 3), np.float32)
    panorama[: camera.horizon] = wall
    depth = np.linspace(0.7, 1.1, HEIGHT + SWAY - camera.horizon, dtype=np.float32)
    panorama[camera.horizon :] = ground * depth[:, None, None]
    for _ in range(70):  # doors, windows, posters, cars
        paint_box(panorama, rng, int(rng.integers(5, 30)), int(rng.integers(5, 45)), strength=0.7)
    panorama += 0.05 * rng.standard_normal((*panorama.shape[:2], 1), dtype=np.float32)
    return panorama.clip(0, 1)


def paint_box(canvas: Array, rng: np.random.Generator, width: int, height: int, strength: float = 0.9) -> None:
    """Paint a rectangle at a random place, in one colour of clothes or striped in two."""
    top = int(rng.integers(0, canvas.shape[0] - height + 1))
    left = int(rng.integers(0, canvas.shape[1] - width + 1))
    first, second = _FABRICS[rng.integers(len(_FABRICS), size=2)]
    colours = np.broadcast_to(first, (height, width, 3))
    if rng.random() < 0.4:
        along = np.arange(height)[:, None] if rng.random() < 0.5 else np.arange(width)[None, :]
        stripes = (along // int(rng.integers(2, 5)) % 2 == 0)[..., None]
        colours = np.where(stripes, first, second)
        colours = np.broadcast_to(colours, (height, width, 3))
    window = canvas[top : top + height, left : left + width]
    window += strength * (colours - window)


def paint_person(canvas: Array, looks: Looks, camera: Camera, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Paint a person in a random pose; returns the mask of the pixels covered."""
    size = camera.size * rng.uniform(0.94, 1.06)
    top = (HEIGHT - size) / 2 + rng.uniform(-3, 3)
    centre = (WIDTH - 1) / 2 + rng.uniform(-4, 4)
    facing = 1 if rng.random() < 0.5 else -1  # mirrored pictures show the same identity
    lean, step, swing = rng.uniform(-0.06, 0.06), rng.uniform(0.0, 0.09), rng.uniform(0.0, 0.08)

    # body coordinates: v from 0 at the top of the head to 1 at the soles, u across, 0 in the middle
    down = (_ROWS - top) / size
    inside = down.clip(0, 1)
    v = (inside**camera.pitch + (down - inside)).astype(np.float32)
    u = (((_COLUMNS - centre) / (1.25 * size)) * facing - lean * (v - 0.5)).astype(np.float32)
    u /= looks.build
    cover = np.zeros((HEIGHT, WIDTH), np.float32)

    def paint(distance: Array, colour: Array) -> None:
        """Paint where the signed distance, in body heights, is negative; edges are a pixel soft."""
        alpha = (0.5 - distance * size).clip(0, 1)
        canvas[...] += alpha[..., None] * (colour - canvas)
        np.maximum(cover, alpha, out=cover)

    arms = np.where(v[..., None] < looks.sleeve, looks.shirt[0], looks.skin)
    legs = np.where(v[..., None] < looks.hem, looks.trousers, looks.skin)
    legs = np.where(v[..., None] < 0.95, legs, looks.shoes)
    if looks.long_hair:
        paint(_ellipse(u, v, (0.0, 0.13), (0.068, 0.115)), looks.hair)
    paint(_limb(u, v, (0.105, 0.22), (0.135 + swing, 0.47), 0.032), arms)
    paint(_limb(u, v, (0.05, 0.52), (0.06 + step, 0.95), 0.048), legs)
    paint(_limb(u, v, (-0.05, 0.52), (-0.06 - step, 0.95), 0.048), legs)
    paint(np.maximum(np.abs(u) - (0.145 - 0.06 * v), np.abs(v - 0.345) - 0.185), _shirt(looks, u, v))
    paint(_badge(looks, u, v), looks.badge_colour)
    paint(_limb(u, v, (-0.105, 0.22), (-0.135 - swing, 0.47), 0.032), arms)
    if looks.bag is not None:
        paint(np.maximum(np.abs(u + 0.14) - 0.065, np.abs(v - 0.50) - 0.075), looks.bag)
    paint(_ellipse(u, v, (0.0, 0.09), (0.058, 0.085)), looks.skin)
    paint(np.maximum(_ellipse(u, v, (0.0, 0.09), (0.062, 0.09)), v - 0.07), looks.hair)
    return cover > 0.5


def _ellipse(u: Array, v: Array, centre: tuple[float, float], radii: tuple[float, float]) -> Array:
    """Approximate signed distance to an ellipse."""
    radius = np.hypot((u - centre[0]) / radii[0], (v - centre[1]) / radii[1])
    return np.asarray((radius - 1) * min(radii), np.float32)


def _limb(u: Array, v: Array, start: tuple[float, float], end: tuple[float, float], radius: float) -> Array:
    """Signed distance to a line with round ends."""
    across, along = end[0] - start[0], end[1] - start[1]
    from_u, from_v = u - start[0], v - start[1]
    nearest = ((from_u * across + from_v * along) / (across**2 + along**2)).clip(0, 1)
    return np.asarray(np.hypot(from_u - nearest * across, from_v - nearest * along) - radius, np.float32)


def _shirt(looks: Looks, u: Array, v: Array) -> Array:
    """The colour ``(H, W, 3)`` of the shirt's cloth at body coordinates, or ``(3,)``."""
    if looks.texture == "plain":
        return np.asarray(looks.shirt[0])
    turn = 2 * math.pi / looks.period
    cos, sin = turn * math.cos(looks.angle), turn * math.sin(looks.angle)
    wave = np.sin(1.25 * u * cos + v * sin)
    if looks.texture != "stripes":
        other = np.sin(1.25 * u * sin - v * cos)
        wave = wave * other if looks.texture == "checks" else wave + other - 0.6
    second = (0.5 + 1.5 * wave).clip(0, 1)[..., None]
    return np.asarray(looks.shirt[0] + second * (looks.shirt[1] - looks.shirt[0]), np.float32)


def _badge(looks: Looks, u: Array, v: Array) -> Array:
    """Signed distance to the badge on the shirt."""
    x, y = 1.25 * (u - looks.badge_at[0]), v - looks.badge_at[1]
    if looks.badge == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.048
    if looks.badge == "cross":
        x, y = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(x - 0.065, y - 0.02), np.maximum(x - 0.02, y - 0.065))
    radius = np.hypot(x, y)
    return radius - 0.055 if looks.badge == "disc" else np.abs(radius - 0.05) - 0.018


def occlude(canvas: Array, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Put a pole, a low wall or a box in front; returns the mask of the pixels covered."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    kind = rng.integers(3)
    if kind == 0:
        left, width = int(rng.integers(8, WIDTH - 12)), int(rng.integers(4, 9))
        mask[:, left : left + width] = True
    elif kind == 1:
        mask[int(rng.integers(62, 84)) :] = True
    else:
        top, left = int(rng.integers(10, HEIGHT - 30)), int(rng.choice((0, WIDTH // 2 + 4)))
        mask[top : top + 26, left : left + WIDTH // 2 - 4] = True
    canvas[mask] = rng.uniform(0.15, 0.75) + rng.uniform(-0.1, 0.1, 3)
    return mask


def develop(canvas: Array, camera: Camera, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn true colours into what the camera records, in a light that changes a little."""
    gain = np.asarray(camera.gain, np.float32) * rng.uniform(0.85, 1.15) * rng.uniform(0.94, 1.06, 3)
    canvas = camera.offset + canvas.clip(0, 1) ** np.float32(camera.gamma) * gain.astype(np.float32)
    canvas += 0.02 * rng.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32)
    return np.asarray((canvas.clip(0, 1) * 255).astype(np.uint8))
