"""A dense model is trained first where none knows the classes, kept, and used again."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from dynavit import InputError
from dynavit.config import Config, load_config
from dynavit.evaluation.sweep import evaluate_run
from dynavit.runs.open import open_run
from dynavit.training.dense_first import train
from dynavit.training.folder import after_move, saved_config

Make = Callable[..., Config]


@pytest.fixture
def weights(tmp_path: Path, tiny: Make) -> str:
    """A state dict with a head of other classes."""
    path = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224", **tiny().model.kwargs, num_classes=7).state_dict(), path)
    return str(path)


def test_the_pruned_run_starts_from_a_dense_one_that_evaluation_compares_with(
    tiny: Make, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(f"model.checkpoint={weights}", "train.dense_epochs=1", "loss.logit_distillation_weight=0.5")
    train(config)
    assert "No model knows these 3 classes yet" in capsys.readouterr().out
    dense = load_config(tmp_path / "run-dense/config.yaml")
    assert (dense.model.stages, dense.train.epochs, dense.loss.logit_distillation_weight) == ([], 1, 0.0)
    pruned = load_config(tmp_path / "run/config.yaml")
    assert pruned.model.checkpoint == str(tmp_path / "run-dense")
    assert pruned.train.epochs == 2
    rows = evaluate_run(open_run(tmp_path / "run"), [0.5], [], tmp_path / "out")
    alone = evaluate_run(open_run(tmp_path / "run-dense"), [], [], tmp_path / "out")
    assert [row["model"] for row in rows] == ["dense", "pruned"]
    assert rows[0]["top1"] == alone[0]["top1"]


def test_the_dense_model_is_used_again_by_runs_that_only_prune_differently(
    tiny: Make, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = (f"model.checkpoint={weights}", "train.epochs=1")
    train(tiny(*start))
    before = (tmp_path / "run-dense/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    train(tiny(*start, "model.keep_ratio=0.7", "model.selector.name=ste", folder="other"))
    assert f"Starts from the dense model in {tmp_path / 'run-dense'}" in capsys.readouterr().out
    assert not (tmp_path / "other-dense").exists()
    assert (tmp_path / "run-dense/model.safetensors").stat().st_mtime_ns == before
    train(tiny(*start, "optimizer.lr=1e-4", folder="third"))  # another dense model
    assert (tmp_path / "third-dense").exists()


def test_other_classes_need_another_dense_model(tiny: Make, weights: str, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "data")
    start = (f"model.checkpoint={weights}", "train.epochs=1", f"data.root={tmp_path / 'data'}")
    train(tiny(*start))
    for split in ("train", "val"):
        (tmp_path / "data" / split / "red").rename(tmp_path / "data" / split / "violet")
    train(tiny(*start, folder="other"))
    assert (tmp_path / "other-dense").exists()


def test_an_interrupted_dense_run_is_resumed_and_never_written_over(tiny: Make, weights: str, tmp_path: Path) -> None:
    short = tiny(f"model.checkpoint={weights}", "train.epochs=1")
    train(short)
    shutil.rmtree(tmp_path / "run")
    longer = tiny(f"model.checkpoint={weights}", "train.epochs=2")
    with pytest.raises(InputError, match=r"run-dense already holds a run or a model: continue it with --resume"):
        train(longer)
    train(longer, resume=True)
    metrics = (tmp_path / "run-dense/metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 2


@pytest.mark.parametrize(
    "overrides",
    [("train.dense_epochs=0",), ("model.checkpoint=null",), ("model.stages=[]",)],
    ids=["left out", "no weights", "dense already"],
)
def test_where_no_dense_run_comes_first(tiny: Make, weights: str, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    train(tiny(f"model.checkpoint={weights}", "train.epochs=1", *overrides))
    assert not (tmp_path / "run-dense").exists()


def test_re_identification_too(reid: Make, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", **reid().model.kwargs, num_classes=0).state_dict(), path)
    train(reid(f"model.checkpoint={path}", "train.epochs=1"))
    rows = evaluate_run(open_run(tmp_path / "run"), [0.5], [], tmp_path / "out")
    assert [row["model"] for row in rows] == ["dense", "pruned"]
    assert rows[0]["map_low"] <= rows[0]["map"] <= rows[0]["map_high"]


@pytest.mark.parametrize("length", [252, 300])  # 252 bytes leave no room for -dense
@pytest.mark.parametrize("resume", [False, True])
def test_a_name_that_is_too_long_for_a_folder_is_refused_before_any_training(
    tiny: Make, weights: str, tmp_path: Path, length: int, resume: bool
) -> None:
    with pytest.raises(InputError, match=r"File name too long.*output_dir=FOLDER or name=NAME"):
        train(tiny(f"model.checkpoint={weights}", folder=length * "x"), resume)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pth", ".yaml"]


def test_a_taken_folder_is_refused_before_the_dense_model_is_trained(tiny: Make, weights: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        train(tiny(f"model.checkpoint={weights}"))
    assert not (tmp_path / "run-dense").exists()


def test_a_finished_run_says_so(tiny: Make, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(f"model.checkpoint={weights}", "train.epochs=1")
    train(config)
    before = (tmp_path / "run/model.safetensors").read_bytes()
    train(config, resume=True)
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "run/model.safetensors").read_bytes() == before


def test_a_resumed_run_keeps_its_dense_model(tiny: Make, weights: str, tmp_path: Path) -> None:
    start = f"model.checkpoint={weights}"
    train(tiny(start, "train.epochs=1"))
    train(tiny(start, "train.epochs=1", "model.keep_ratio=0.7", folder="other"))  # shares it
    before = (tmp_path / "run-dense/model.safetensors").read_bytes()
    for folder in ("run", "other"):
        keep = "model.keep_ratio=0.7" if folder == "other" else "model.keep_ratio=0.5"
        train(tiny(start, "train.epochs=2", keep, folder=folder), resume=True)
        assert len((tmp_path / folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "run-dense/model.safetensors").read_bytes() == before
    assert not (tmp_path / "other-dense").exists()


def test_a_dense_model_of_other_weights_or_a_damaged_one_is_not_used(tiny: Make, weights: str, tmp_path: Path) -> None:
    start = (f"model.checkpoint={weights}", "train.epochs=1")
    train(tiny(*start))
    (tmp_path / "run-dense/model.safetensors").write_bytes(b"cut")
    train(tiny(*start, folder="second"))
    assert (tmp_path / "second-dense").exists()
    shutil.rmtree(tmp_path / "run-dense")
    path = Path(weights)
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 1000))  # written anew
    train(tiny(*start, folder="third"))
    assert (tmp_path / "third-dense").exists()


def test_both_runs_may_be_moved(tiny: Make, weights: str, tmp_path: Path) -> None:
    train(tiny(f"model.checkpoint={weights}", "train.epochs=1"))
    (tmp_path / "there").mkdir()
    for name in ("run", "run-dense"):
        (tmp_path / name).rename(tmp_path / "there" / name)
    rows = evaluate_run(open_run(tmp_path / "there/run"), [0.5], [], tmp_path / "out")
    assert "top1" in rows[0]
    train(tiny(f"model.checkpoint={weights}", "train.epochs=2", folder="there/run"), resume=True)
    assert len((tmp_path / "there/run/metrics.jsonl").read_text().splitlines()) == 2
    assert saved_config(tmp_path / "there/run").model.checkpoint == str(tmp_path / "there/run-dense")


@pytest.mark.parametrize(
    ("start", "now"),
    [("run-dense", "new/moved-dense"), ("other-dense", "new/other-dense"), ("weights.pth", "gone/weights.pth")],
)
def test_the_dense_model_is_looked_for_beside_a_moved_run(tiny: Make, tmp_path: Path, start: str, now: str) -> None:
    config = tiny(f"model.checkpoint={tmp_path / 'gone' / start}")
    for name in ("moved", "moved-dense", "other-dense", "weights.pth"):
        (tmp_path / "new" / name).mkdir(parents=True)
    found = after_move(config, tmp_path / "new/moved").model.checkpoint
    assert found == str(tmp_path / now)


def test_the_current_folder_can_be_the_run(
    tiny: Make, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    config = tiny(f"model.checkpoint={weights}", "train.epochs=1")
    monkeypatch.chdir(tmp_path / "here")
    config.output_dir = "."
    train(config)
    assert (tmp_path / "here/model.safetensors").exists()
    assert (tmp_path / "here-dense/model.safetensors").exists()
