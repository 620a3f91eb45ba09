"""Training from the command line: own pictures, shipped configurations, settings."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import dynavit
from dynavit.cli import main
from dynavit.config import Config
from dynavit.config.describe import described
from dynavit.config.recipes import find_config, recipes, summary
from dynavit.config.schema import leaves

ROOT = Path(__file__).parents[2]
KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for channel, name in enumerate(("red", "green")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (40, 36, 3))
                pixels[..., channel] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def test_own_pictures_need_no_configuration(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("vit_tiny_patch16_224", **KWARGS, num_classes=5).state_dict(), "weights.pth")
    start = ["model.checkpoint=weights.pth", "model.architecture=vit_tiny_patch16_224"]
    kwargs = [f"model.kwargs.{key}={value}" for key, value in KWARGS.items()]
    short = ["data.batch_size=4", "data.workers=0", "train.epochs=1", "train.dense_epochs=1"]
    assert main(["train", "--images", str(photos), *start, *kwargs, *short]) == 0
    said = capsys.readouterr().out
    assert "a dense one is fine-tuned first, in checkpoints/photos-dense" in said
    assert "step 1/3" in said  # signs of life, because there is no terminal
    assert main(["evaluate", "checkpoints/photos", "--keep-ratios", "0.5", "--no-timing"]) == 0
    table = capsys.readouterr().out
    assert "dense" in table
    assert "top-1 on 6 images. Fewer MACs, speedup and delta (points): against the dense model." in table


def test_without_weights_to_start_from_it_stops_and_says_so(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["train", "--images", str(photos), f"output_dir={tmp_path / 'run'}", "data.workers=0"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the weights of deit_small_patch16_224 could not be downloaded" in error
    assert "model.checkpoint=FILE" in error
    assert not (tmp_path / "run").exists()


def test_neither_pictures_nor_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "give --images DIR" in capsys.readouterr().err


def test_shipped_configurations_are_found_by_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(recipes()) == len(list((ROOT / "configs").rglob("*.yaml"))) - 3  # those of accelerate are no trainings
    for name, path in recipes().items():
        assert path == find_config(name) == find_config(f"configs/{name}.yaml")
        assert 10 < len(summary(path)) <= 110
    assert main(["configs", "folder/finetune"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs/folder/finetune.yaml").read_text()
    with pytest.raises(dynavit.InputError, match="Did you mean 'folder/finetune'"):
        find_config("folder/fintune")
    (tmp_path / "secret").write_text("mine")
    for name in ("secret", str(tmp_path / "secret"), "../secret", "x" * 300):
        assert main(["configs", name]) == 2
        printed = capsys.readouterr()
        assert not printed.out
        assert f"{name} is no shipped configuration" in printed.err


def test_every_setting_is_listed_and_explained() -> None:
    listed = described()
    assert [(setting.key, setting.value) for setting, _ in listed] == leaves(Config())
    assert [setting.key for setting, _ in described("schedule")] == [
        key for key, _ in leaves(Config()) if key.startswith("schedule.")
    ]
    assert not [setting.key for setting, about in listed if not about]
    with pytest.raises(dynavit.InputError, match=r"Did you mean 'train\.epochs'"):
        described("epochs")


@pytest.mark.slow
def test_what_is_released_brings_the_library_and_the_configurations(photos: Path, tmp_path: Path) -> None:
    # the source distribution, and from that the wheel
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)], check=True, timeout=300)
    assert (tmp_path / f"dynavit-{dynavit.__version__}.tar.gz").exists()
    (wheel,) = tmp_path.glob(f"dynavit-{dynavit.__version__}-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"dynavit/configs/{name}.yaml" for name in recipes()} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"dynavit"}
    assert not [name for name in names if "stud" in name]

    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    model = dynavit.create_model("vit_tiny_patch16_224", stages=(), num_classes=2, **KWARGS)
    model.metadata = {"class_names": ["green", "red"]}
    model.save_pretrained(tmp_path / "dense")
    (tmp_path / "empty").mkdir()
    methods = ["methods", "--checkpoint", str(tmp_path / "dense"), "--root", str(photos), "--keep-ratios", "0.9"]
    shown = subprocess.run(
        [sys.executable, "-m", "dynavit", *methods, "--no-timing", "--output", "compared"],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert shown.returncode == 0, shown.stderr
    rows = json.loads((tmp_path / "empty/compared/methods.json").read_text())["rows"]
    left_out = {line.partition(" ")[0] for line in shown.stdout.splitlines() if "is left out" in line}
    shipped = {name.removeprefix("methods/") for name in recipes() if name.startswith("methods/")}
    assert {row["method"] for row in rows} - {"dense", "smaller images"} | left_out == shipped
