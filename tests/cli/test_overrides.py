"""Settings beside a trained model: those that can be honoured are, the others are refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dynavit
from dynavit.cli import main
from dynavit.config import load_config, save_config
from dynavit.runs.open import open_run

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
PREPROCESSING = {
    "image_size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0,
    "crop_mode": "center",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in ("train", "val", "other"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(4 if split == "other" else 3):
                pixels = rng.integers(0, 255, (40, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def save(folder: Path, stages: tuple[int, ...] = (1, 2)) -> None:
    model = dynavit.create_model("vit_tiny_patch16_224", num_classes=2, stages=stages, keep_ratio=0.5, **TINY)
    model.metadata = {"class_names": ["cat", "dog"], "preprocessing": PREPROCESSING}
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """What a training leaves: a model, its configuration, and the best model."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    save(folder)
    save(folder / "best")
    words = ["model.architecture=vit_tiny_patch16_224", f"data.root={data}", "data.workers=0", "data.batch_size=4"]
    save_config(load_config(None, [*words, "name=mine"]), folder / "config.yaml")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model saved from Python: there is no configuration."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save(folder)
    return folder


QUICK = ["--no-timing", "--keep-ratios", "1.0,0.5"]


@pytest.mark.parametrize("place", ["best", "copy"])
def test_the_best_model_of_a_run_has_its_configuration(place: str, run: Path, tmp_path: Path) -> None:
    if not (run / place).exists():
        (run / "best").rename(run / place)
    assert main(["evaluate", str(run / place), *QUICK, "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())[0]["model"] == "dense"
    if place != "best":
        (run / place).rename(run / "best")


def test_another_model_below_a_run_is_not_the_runs(run: Path) -> None:
    save(run / "other", stages=(1,))
    assert open_run(run / "other").config is None


@pytest.mark.parametrize(
    "words", [["data.name=folder", "data.root={data}"], ["data.root={data}"], ["data={{root: {data}, batch_size: 2}}"]]
)
def test_data_may_be_named_for_a_model_without_a_configuration(
    words: list[str], saved: Path, data: Path, tmp_path: Path
) -> None:
    words = [word.format(data=data) for word in words]
    assert main(["evaluate", str(saved), *QUICK, "--output", str(tmp_path), "data.workers=0", *words]) == 0
    rows = json.loads((tmp_path / "evaluation.json").read_text())
    # nothing is known of a dense model; smaller images are looked at by the run's own, all tokens kept
    assert [(row["model"], row.get("top1") is None) for row in rows[:3]] == [
        ("dense", True),
        ("pruned", False),
        ("pruned", False),
    ]
    assert all(row["model"] == "rival" and row["top1"] is not None for row in rows[3:])
    assert "model: accuracy against cost" in (tmp_path / "report.html").read_text()


def test_the_task_is_the_models(tmp_path: Path) -> None:
    model = dynavit.create_model("vit_tiny_patch16_224", num_identities=4, stages=(1,), keep_ratio=0.5, **TINY)
    model.save_pretrained(tmp_path)
    config = open_run(tmp_path, overrides=["data.name=quickstart-reid", "evaluate.rerank=true"]).config
    assert config is not None
    assert config.task == "reid"


@pytest.mark.parametrize("words", [[], ["data.batch_size=2"], ["evaluate.rounds=2"]])
def test_without_data_the_way_out_is_named(words: list[str], saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("evaluate", "export"):
        if command == "evaluate" or not words:
            assert main([command, str(saved), *words]) == 2
            assert "data.root=IMAGES" in capsys.readouterr().err


def test_preprocessing_is_honoured(run: Path, saved: Path) -> None:
    for folder in (run, saved):
        opened = open_run(folder, overrides=["data.mean=[0.1, 0.2, 0.3]", "data.crop_pct=0.5"])
        assert opened.preprocessing == {**PREPROCESSING, "mean": [0.1, 0.2, 0.3], "crop_pct": 0.5}
        assert open_run(folder).preprocessing == PREPROCESSING


def test_data_and_evaluation_are_honoured(run: Path, tmp_path: Path) -> None:
    words = ["data.validation_split=other", "evaluate.keep_ratios=[1.0, 0.3]", "evaluate.batch_sizes=[1]"]
    words += ["evaluate.rivals=none"]
    assert main(["evaluate", str(run), "--output", str(tmp_path), *words, "evaluate.rounds=1"]) == 0
    rows = json.loads((tmp_path / "evaluation.json").read_text())
    assert [row["keep_ratio"] for row in rows] == [1.0, 1.0, 0.3]
    assert rows[1]["images"] == 8
    assert list(rows[1]["throughput"]) == ["1"]


EVALUATE, EXPORT = ["evaluate", "{run}"], ["export", "{run}"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*EVALUATE, "model.keep_ratio=0.3"], "model.keep_ratio=0.3: the ratio of a trained model .*--keep-ratios"),
        ([*EXPORT, "model.keep_ratios=[0.3,0.2]"], "--keep-ratio R"),
        ([*EVALUATE, "model.selector.name=ste"], "model.selector.name=ste: .* train again"),
        ([*EVALUATE, "model={{selector: {{name: ste}}}}"], "train again"),
        ([*EVALUATE, "train.epochs=3"], "train.epochs=3: .* train again"),
        ([*EXPORT, "optimizer.lr=1"], "optimizer.lr=1"),
        ([*EVALUATE, "loss.keep_ratio_weight=1"], "loss.keep_ratio_weight=1"),
        ([*EVALUATE, "schedule.temperature_end=0.1"], "schedule.temperature_end"),
        ([*EVALUATE, "seed=3"], "seed=3"),
        ([*EVALUATE, "output_dir=x"], "output_dir=x: .*--output"),
        ([*EVALUATE, "data.mixup=0.2"], "data.mixup=0.2"),
        ([*EVALUATE, "data.augmentation.hflip=0.5"], "data.augmentation"),
        ([*EXPORT, "evaluate.rounds=2"], "setting of evaluate"),
        ([*EXPORT, "data.batch_size=2"], "data.batch_size=2: this does nothing, not used"),
        ([*EXPORT, "--images", "{data}", "data.root={data}"], "the images come from --images"),
        ([*EVALUATE, "--no-timing", "evaluate.rounds=2"], "evaluate.rounds=2: with --no-timing"),
        ([*EVALUATE, "--keep-ratios", "0.5", "evaluate.keep_ratios=[0.3]"], "--keep-ratios says it already"),
        ([*EVALUATE, "--batch-sizes", "2", "evaluate.batch_sizes=[3]"], "--batch-sizes says it already"),
        ([*EVALUATE, "data.train_split=val"], "data.train_split=val: training images .*--adaptive"),
        ([*EVALUATE, "evaluate.calibration_images=8"], "--adaptive"),
        ([*EVALUATE, "data.batchsize=2"], "unknown key 'data.batchsize'"),
        ([*EXPORT, "modle.keep_ratio=2"], "unknown key"),
        (["evaluate", "{dense}", "--keep-ratios", "0.5"], "--keep-ratios: a dense model"),
        (["evaluate", "{dense}", "--adaptive"], "--adaptive: a dense model"),
        (["export", "{dense}", "--keep-ratio", "0.5"], "holds a dense model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_settings_that_would_do_nothing_are_refused(
    arguments: list[str], said: str, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "dense", stages=())
    words = [word.format(run=run, data=data, dense=tmp_path / "dense") for word in arguments]
    with pytest.raises(dynavit.InputError, match=said):
        raise dynavit.InputError(refused(words, capsys))
    assert not list(run.glob("evaluation.*"))


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    return shown
