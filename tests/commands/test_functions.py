"""The commands as functions: what they return, and that they refuse what the commands refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dynavit
from dynavit import InputError
from dynavit.commands.settings import as_words
from dynavit.config import Config, load_config
from dynavit.config.schema import leaves

Make = Callable[..., Config]
QUICK = {"train.epochs": 1, "train.dense_epochs": 0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned classifier of the pictures' classes, without a configuration."""
    return save(tmp_path_factory.mktemp("classifier"), num_classes=3)


@pytest.fixture(scope="module")
def reid_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("reid"), num_identities=4)


def save(folder: Path, **head: int) -> Path:
    torch.manual_seed(0)
    model = dynavit.create_model(
        "vit_tiny_patch16_224",
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, stages=(1, 2), keep_ratio=0.5, **head,
    )  # fmt: skip
    model.metadata = {"class_names": ["blue", "green", "red"]} if "num_classes" in head else {}
    model.save_pretrained(folder)
    return folder


def test_train_returns_the_run_and_evaluate_its_rows(pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "model: {architecture: vit_tiny_patch16_224, stages: [1, 2],\n"
        "        kwargs: {img_size: 32, patch_size: 8, embed_dim: 24, depth: 3, num_heads: 3}}\n"
        "data: {batch_size: 8, workers: 0, crop_pct: 1.0}\n"
    )
    run = dynavit.train(path, {**QUICK, "output_dir": tmp_path / "run", "model.keep_ratio": 0.5}, images=pictures)
    assert run.path == tmp_path / "run"
    assert run.class_names == ("blue", "green", "red")
    assert run.model.keep_ratios == (0.5, 0.25)
    rows = dynavit.evaluate(run.path, [0.3], [], overrides={"data.batch_size": 5}, output=tmp_path / "results")
    expected = [("dense", 1.0), ("pruned", 1.0), ("pruned", 0.3), ("rival", 1.0)]
    assert [(row["model"], row["keep_ratio"]) for row in rows] == expected
    assert json.loads((tmp_path / "results/evaluation.json").read_text()) == rows
    dynavit.compare_runs([run.path], tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 1000
    config = load_config(run.path / "config.yaml")
    assert not dynavit.check_data(config).problems
    assert dynavit.train(config, {"train.epochs": 1}, resume=True).path == run.path  # finished: nothing to do
    with pytest.raises(InputError, match=r"--resume"):
        dynavit.train(config)


@pytest.mark.parametrize(
    "settings",
    [
        {"model.stages": [1, 2], "model.checkpoint": Path("a: b #c"), "data.root": "07", "train.clip_grad_norm": None},
        {"optimizer.lr": 1e-05, "model.pretrained": False, "model.kwargs": {"img_size": [64, 32], "x": {"y": "z"}}},
        {"model.selector": {"name": "topk", "gradient": "gate"}, "data.options": {"labels": "it's: #1.csv"}},
        {"model.checkpoint": "'quoted'"},
    ],
)
def test_settings_of_a_mapping_arrive_as_they_are(settings: dict[str, Any]) -> None:
    values = dict(leaves(load_config(None, ["model.architecture=test_vit", *as_words(settings)])))
    assert {key: values[key] for key in settings} == {
        key: str(value) if isinstance(value, Path) else value for key, value in settings.items()
    }


def test_a_configuration_is_read_as_its_file_is(tiny: Make) -> None:
    for config in (
        load_config("methods/evit"),
        tiny("model.selector.name=ste", "data.augmentation={hflip: 1.0, scale: [0.2, 0.3]}"),
    ):
        assert load_config(None, as_words(dict(leaves(config)))) == config


def test_predict_labels_or_finds_the_nearest(saved: Path, reid_saved: Path, pictures: Path, tmp_path: Path) -> None:
    images = pictures / "val"
    rows = dynavit.predict(saved, images, tmp_path / "labels.json", batch_size=5)
    assert len(rows) == 12
    assert json.loads((tmp_path / "labels.json").read_text()) == rows
    names, embeddings = dynavit.embed(reid_saved, images, tmp_path / "embeddings.npz", keep_ratio=0.7)
    with np.load(tmp_path / "embeddings.npz") as written:
        assert written["images"].tolist() == names
        assert np.array_equal(written["embeddings"], embeddings.numpy())
    similarity = (embeddings @ embeddings.T).fill_diagonal_(-2)
    nearest = dynavit.predict(reid_saved, images, keep_ratio=0.7)
    assert [row["nearest"] for row in nearest] == [names[other] for other in similarity.argmax(dim=1)]


def test_pictures_that_cannot_be_read_are_warned_of(saved: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / "good.png").write_bytes((pictures / "val/red/0.png").read_bytes())
    for function in (dynavit.predict, dynavit.visualize):
        with pytest.warns(UserWarning, match=r"broken\.png cannot be read"):
            assert len(function(saved, tmp_path, *([tmp_path] if function is dynavit.visualize else []))) == 1
    assert (tmp_path / "kept_tokens_001.png").stat().st_size > 1000


def test_methods_are_compared(pictures: Path, saved: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    rows, about = dynavit.compare_methods(
        saved, ["methods/random", "methods/dtps"], [0.9], root=pictures, rounds=None, output=tmp_path, log=lines.append
    )
    assert {row["method"] for row in rows} == {"dense", "random", "smaller images"}
    assert lines == ["dtps is left out: its scorer, mlp, has to be trained first."]
    assert about["left_out"].startswith("dtps: its scorer")
    assert json.loads((tmp_path / "methods.json").read_text()) == {**about, "rows": rows}


def test_speed_is_measured_without_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dynavit.evaluation import benchmark

    monkeypatch.setattr(benchmark, "measure", lambda calls, rounds: {name: [1.0] * rounds for name in calls})
    kwargs = {"img_size": 64, "embed_dim": 32, "num_heads": 2, "depth": 4}
    common: dict[str, Any] = {"model_kwargs": kwargs, "rounds": 2, "device": "cpu", "output": tmp_path / "speed.json"}
    (row,) = dynavit.benchmark("vit_tiny_patch16_224", [0.5], [2], **common)
    assert row["ms"]["dense"] == 500
    assert json.loads((tmp_path / "speed.json").read_text())["rows"][0]["ms"] == row["ms"]
    rows = dynavit.benchmark_selectors("vit_tiny_patch16_224", [2], **common)
    assert "topk" in {row["selector"] for row in rows}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: dynavit.train(), "give --images DIR"),
        (lambda run: dynavit.train("quickstart/clasify"), "Did you mean 'quickstart/classify'"),
        (lambda run: dynavit.train("quickstart/classify", "train.epochs=1"), "give a list"),
        (lambda run: dynavit.train("quickstart/classify", {"train.epochs": object()}), "a setting is text, a number"),
        (lambda run: dynavit.train("quickstart/classify", {"train.epoch": 1}), "unknown key 'train.epoch'"),
        (lambda run: dynavit.check_data(), "give --images DIR"),
        (lambda run: dynavit.check_data("quickstart/classify", images=run), "--config says already"),
        (lambda run: dynavit.compare_runs([]), "no run to compare"),
        (lambda run: dynavit.compare_runs(str(run)), r"run_dirs='.*': give a list"),
        (lambda run: dynavit.evaluate(run, 0.5), r"keep_ratios=0\.5: give a list, such as \[0\.5\]"),
        (lambda run: dynavit.benchmark("test_vit", batch_sizes=[0]), "--batch-sizes=0: give a whole number"),
        (lambda run: dynavit.benchmark_selectors("test_vit", [0]), "--batch-sizes=0: give a whole number"),
        (lambda run: dynavit.benchmark("test_vit", methods="methods/evit"), "methods='methods/evit': give a list"),
        (lambda run: dynavit.compare_runs([run]), "is no run"),
        (lambda run: dynavit.evaluate(run), "has no config.yaml"),
        (lambda run: dynavit.evaluate(run, overrides={"train.epochs": 1}), "train again with it"),
        (lambda run: dynavit.export(run, "model.pt"), r"must end in \.onnx"),
        (lambda run: dynavit.predict(run, run, batch_size=0), "--batch-size=0"),
        (lambda run: dynavit.predict(run, run, batch_size="8"), "--batch-size='8'"),
        (lambda run: dynavit.predict(run, run, workers=-1), "--workers=-1: give a whole number of 0 or more"),
        (lambda run: dynavit.embed(run, run, "x.csv"), r"must end in \.npz"),
        (lambda run: dynavit.visualize(run, "nowhere"), "nowhere does not exist"),
        (lambda run: dynavit.compare_methods(run, rounds=0), "--rounds=0"),
        (lambda run: dynavit.benchmark("vit_tny"), "timm has no model"),
    ],
)
def test_bad_input_is_an_input_error(call: Callable[[Path], object], said: str, saved: Path) -> None:
    with pytest.raises(InputError, match=said):
        call(saved)
