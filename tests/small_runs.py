"""Runs that take a second, on pictures made for them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from dynavit.config import Config, load_config

TINY = """
task: classify
model:
  architecture: vit_tiny_patch16_224
  kwargs: {img_size: 32, patch_size: 8, embed_dim: 24, depth: 3, num_heads: 3}
  stages: [1, 2]
  keep_ratio: 0.5
data:
  root: %s
  crop_pct: 1.0
  batch_size: 8
  workers: 0
optimizer: {lr: 2.0e-3}
train: {epochs: 2, log_steps: 1}
evaluate: {rounds: 2, keep_ratios: [1.0, 0.5], batch_sizes: [2], rivals: none}
"""

TINY_REID = """
task: reid
model:
  architecture: vit_tiny_patch16_224
  kwargs: {img_size: [32, 16], patch_size: 8, embed_dim: 24, depth: 3, num_heads: 3}
  stages: [1, 2]
  keep_ratio: 0.5
data:
  name: market1501
  root: %s
  batch_size: 8
  images_per_identity: 2
  augmentation: {flip: 0.5, pad: 1, erase: 0.2}
  workers: 0
optimizer: {lr: 2.0e-3}
train: {epochs: 2, log_steps: 1}
evaluate: {rounds: 2, keep_ratios: [1.0, 0.5], batch_sizes: [2], rivals: none}
"""


def forget_accelerate() -> None:
    """Leave nothing behind that the next run would find in the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def own_accelerate() -> Iterator[None]:
    """A test that trains in a precision of its own."""
    forget_accelerate()
    yield
    forget_accelerate()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noisy pictures, one colour a class: 24 for training and 12 for validation."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for channel, name in enumerate(("red", "green", "blue")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3))
                pixels[..., channel] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def tiny(tmp_path: Path, pictures: Path) -> Callable[..., Config]:
    """Makes the configuration of a run that takes a second; each call may name its own folder."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY % pictures)

    def make(*overrides: str, folder: str = "run") -> Config:
        return load_config(path, [f"output_dir={tmp_path / folder}", *overrides])

    return make


def market(root: Path) -> Path:
    """Six identities to learn, three to find; the upper and the lower half tell who it is, cameras tint."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 200, (12, 2, 3))
    splits = {"bounding_box_train": range(1, 7), "query": range(7, 10), "bounding_box_test": [*range(7, 10), 0]}
    for split, identities in splits.items():
        folder = root / split
        folder.mkdir(parents=True)
        for identity in identities:
            for camera in (1, 2):
                for number in range(1 if split == "query" else 2):
                    picture = np.repeat(colours[identity][:, None], 16, axis=0).repeat(16, axis=1)
                    picture = picture + rng.integers(0, 40, picture.shape) + 10 * camera
                    name = f"{identity:04}_c{camera}s1_{number:06}_00.jpg"
                    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name, quality=95)
    return root


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return market(tmp_path_factory.mktemp("people"))


@pytest.fixture
def reid(tmp_path: Path, people: Path) -> Callable[..., Config]:
    path = tmp_path / "reid.yaml"
    path.write_text(TINY_REID % people)

    def make(*overrides: str, folder: str = "run") -> Config:
        return load_config(path, [f"output_dir={tmp_path / folder}", *overrides])

    return make
