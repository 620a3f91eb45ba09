"""Opening runs, finding the pictures that people name, and reading them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dynavit
from dynavit import InputError
from dynavit.cli import main
from dynavit.config import Config
from dynavit.data.transforms import Preparation
from dynavit.evaluation.sweep import evaluate_run
from dynavit.runs.images import list_images, read_images
from dynavit.runs.open import choose_device, open_run
from dynavit.training.trainer import Trainer

Make = Callable[..., Config]


def saved_model(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 3}
    model = dynavit.create_model("vit_tiny_patch16_224", stages=(1, 2), keep_ratio=0.5, **sizes | options)
    model.metadata = {
        "preprocessing": {
            "image_size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
            "crop_pct": 1.0, "crop_mode": "center",
        }
    }  # fmt: skip
    if "in_chans" in options:
        model.metadata = {}
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three pictures, and what lies about in people's folders."""
    root = tmp_path / "mixed"
    for name in ("a/0.png", "b/1.jpg", "b/.ipynb_checkpoints/1-checkpoint.jpg", "__MACOSX/b/1.jpg", "elsewhere.avif"):
        path = (tmp_path if name.startswith("elsewhere") else root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), "teal").save(path)
    (root / "Thumbs.db").touch()
    (root / "b/notes.txt").touch()
    (root / "a/link.avif").symlink_to(tmp_path / "elsewhere.avif")
    (root / "a/loop").symlink_to(root)
    os.mkfifo(root / "a/pipe.png")
    return root


def test_pictures_are_found_and_what_is_passed_over_is_said(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [path.relative_to(mixed).as_posix() for path in list_images(mixed)]
    assert found == ["a/0.png", "a/link.avif", "b/1.jpg"]
    (note,) = capsys.readouterr().err.splitlines()
    for words in ("3 hidden", "1 no image file (b/notes.txt)", "named pipe", "a/pipe.png", "a/loop"):
        assert words in note
    assert list_images(mixed / "b/notes.txt") == [mixed / "b/notes.txt"]  # named, so it is meant
    for name, said in (("a/pipe.png", "named pipe"), ("c", "does not exist"), ("b/.ipynb_checkpoints", "no images")):
        if name.startswith("b"):
            (mixed / name / "1-checkpoint.jpg").unlink()
        with pytest.raises(dynavit.InputError, match=said):
            list_images(mixed / name)


def test_a_failing_preparation_is_not_blamed_on_the_pictures(saved: Path, mixed: Path) -> None:
    run = open_run(saved)

    def failing(picture: Image.Image) -> torch.Tensor:
        raise ValueError("of the code")

    run = replace(run, preparation=Preparation(failing, 3))
    with pytest.raises(dynavit.InputError, match=r"0\.png: preparing it for the model failed: ValueError: of the code"):
        list(read_images(run, list_images(mixed), 4))


BROKEN: list[tuple[str, Any]] = [
    ("std", [0, 0, 0]),
    ("std", [0.5, 0.5, "x"]),
    ("std", [0.5]),
    ("mean", [0.5] * 4),
    ("mean", None),
    ("interpolation", "cubic"),
    ("crop_pct", -1),
    ("crop_pct", "all"),
    ("crop_mode", "middle"),
    ("image_size", 0),
    ("image_size", [32]),
    ("image_size", [48, 48]),
    ("image_sise", [32, 32]),
]


@pytest.mark.parametrize(("key", "value"), BROKEN)
def test_broken_preprocessing_is_refused_at_the_start(
    saved: Path, tmp_path: Path, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.safetensors").symlink_to(saved / "model.safetensors")
    config = json.loads((saved / "config.json").read_text())
    config["metadata"]["preprocessing"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["predict", str(tmp_path), "--images", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'config.json'}, metadata.preprocessing: ")
    assert key in line


@pytest.mark.parametrize("preprocessing", [None, [], "x", {}, {"mean": [0.5] * 3, "std": [0.5] * 3}])
def test_preprocessing_of_another_form(saved: Path, tmp_path: Path, preprocessing: Any) -> None:
    (tmp_path / "model.safetensors").symlink_to(saved / "model.safetensors")
    config = json.loads((saved / "config.json").read_text())
    config["metadata"]["preprocessing"] = preprocessing
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(dynavit.InputError, match=r"config\.json, metadata\.preprocessing: .*(keys and values|missing)"):
        open_run(tmp_path)


# other numbers of channels


@pytest.mark.parametrize("channels", [1, 4])
def test_tools_take_models_of_other_channels(
    channels: int, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved_model(tmp_path / "model", in_chans=channels)
    run = open_run(folder)
    assert len(run.preprocessing["mean"]) == len(run.preprocessing["std"]) == channels
    picture = Image.new("RGB", (32, 32), (200, 100, 50))
    assert run.transform(picture).shape == (channels, 32, 32)
    seen = run.pixels(run.transform(picture))
    expected = np.asarray(picture.convert("L").convert("RGB") if channels == 1 else picture)
    assert np.abs(seen.astype(int) - expected).max() <= 1
    for command in ("predict", "visualize"):
        assert main([command, str(folder), "--images", str(pictures / "val")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 12 + 1


@pytest.mark.parametrize("channels", [1, 4])
def test_models_of_other_channels_train(channels: int, tiny: Make, tmp_path: Path) -> None:
    augmentation = "{auto_augment: rand-m9-mstd0.5-inc1}" if channels == 1 else "{random_erasing: 0.5}"
    config = tiny(
        f"model.kwargs.in_chans={channels}", f"data.augmentation={augmentation}", "train.epochs=1",
        f"data.mean={[0.4] * channels}",
    )  # fmt: skip
    Trainer(config).fit()
    run = open_run(config.run_dir)
    assert run.preprocessing["mean"] == [0.4] * channels
    rows = evaluate_run(run, [0.5], [], tmp_path / "out")
    assert [row["model"] for row in rows][-1] == "pruned"


def test_re_identification_with_one_channel(reid: Make, tmp_path: Path) -> None:
    config = reid("model.kwargs.in_chans=1", "train.epochs=1")
    Trainer(config).fit()
    assert evaluate_run(open_run(config.run_dir), [0.5], [], tmp_path / "out")[-1]["map"] > 0


@pytest.mark.parametrize("channels", [2, 5])
def test_channels_that_pictures_do_not_have(
    channels: int, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved_model(tmp_path / "model", in_chans=channels)
    assert main(["predict", str(folder), "--images", str(pictures / "val")]) == 2
    assert f"in_chans={channels}: pictures are read with 1 channel (grey), 3" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_models_of_other_channels_are_exported(channels: int, tmp_path: Path, pictures: Path) -> None:
    folder = saved_model(tmp_path / "model", in_chans=channels)
    assert main(["export", str(folder), "--images", str(pictures / "val")]) == 0


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts it."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def test_each_process_takes_the_gpu_of_its_number(second_of_two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(str(device)))
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))
    assert str(choose_device(None)) == asked[0] == "cuda:1"
    monkeypatch.delenv("LOCAL_RANK")  # WORLD_SIZE alone is set by schedulers, too
    assert str(choose_device(None)) == "cuda"
    assert str(choose_device("cuda:3")) == asked[1] == "cuda:3"


def test_one_gpu_for_several_processes_is_refused(second_of_two: None) -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(InputError, match=r"--device cuda:0: each of 2 processes takes the GPU of its own number"):
        choose_device("cuda:0")


def test_commands_of_one_process_are_refused_to_several(
    second_of_two: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark"]) == 2
    assert "benchmark works in one process" in capsys.readouterr().err
