"""Files that are given, a model that was trained on them, and what keeps attempts apart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from runs import fill, train
from safetensors.torch import save_file
from values import CLASSIFY, REID

from dynavit.config import load_config


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.fuzz)
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no draw reach the network: names of the Hub are not found at once."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths by name: pictures, and models trained on them; nothing below their folder may change.

    ``<own>`` is a folder with notes and with a model that is somebody's.
    """
    given = tmp_path_factory.mktemp("fuzz") / "given"
    found = {name: str(given / name) for name in ("pictures", "people", "own", "model", "reid-model")}
    _pictures(given / "pictures")
    _people(given / "people")
    for task, name in ((CLASSIFY, "model"), (REID, "reid-model")):
        settings = {key: text for key, text in task.items() if key != "output_dir"}
        file = given.parent / f"{name}.yaml"
        file.write_text("task: classify\n")
        run = given.parent / f"{name}-run"
        overrides = [f"{key}={fill(text, found)}" for key, text in settings.items()]
        trainer = train(load_config(file, [*overrides, f"output_dir={run}"]))
        shutil.copytree(run, given / name)
        if name == "model":
            weights = {key: value.clone() for key, value in trainer.model.backbone.state_dict().items()}
    save_file(weights, given / "weights.safetensors")
    torch.save({"model": weights}, given / "weights.pth")
    (given / "damaged.pth").write_bytes((given / "weights.pth").read_bytes()[:5000])
    (given / "own").mkdir()
    (given / "own/notes.txt").write_text("notes\n")
    (given / "own/model.safetensors").write_bytes(b"somebody's")
    files = {name: str(given / name) for name in ("weights.safetensors", "weights.pth", "damaged.pth")}
    return found | files | {"given": str(given)}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Function: name to a fresh working directory."""

    def enter(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        return folder

    return enter


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def _pictures(root: Path) -> None:
    """Make 8 pictures of two classes to train on, 4 to validate on, and 8 more in a split called extra."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("extra", 4)):
        for channel, name in enumerate(("red", "green")):
            for number in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3))
                pixels[..., channel] += 120
                _save(root / split / name / f"{number}.png", pixels)


def _people(root: Path) -> None:
    """Make four identities to learn and two to find, in the layout of Market-1501, by two cameras."""
    rng = np.random.default_rng(0)
    for split, identities in (("bounding_box_train", range(1, 5)), ("query", (5, 6)), ("bounding_box_test", (5, 6))):
        for identity in identities:
            for camera in (1, 2):
                for number in range(1 if split == "query" else 2):
                    pixels = 30 * identity + rng.integers(0, 40, (32, 32, 3))
                    _save(root / split / f"{identity:04}_c{camera}s1_{number:06}_00.jpg", pixels)
