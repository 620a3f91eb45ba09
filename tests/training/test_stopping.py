"""Training stops when validation does not get better, and goes on when it is given more patience."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch

import dynavit
from dynavit.config import Config
from dynavit.tasks import Evaluation
from dynavit.tasks.base import Detail
from dynavit.training.folder import is_out_of_patience
from dynavit.training.monitor import MetricsFile
from dynavit.training.trainer import Trainer

Make = Callable[..., Config]


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([], 1, False),
        ([50.0], 1, False),
        ([50.0, 50.0], 1, True),  # as good is not better
        ([50.0, 49.0], 2, False),
        ([50.0, 49.0, 50.0], 2, True),
        ([50.0, 49.0, 51.0], 2, False),
        ([50.0, 49.0, 48.0, 47.0], None, False),
    ],
)
def test_patience_counts_epochs_since_the_best(values: list[float], patience: int | None, expected: bool) -> None:
    rows = [{"val/top1": value} for value in values]
    assert is_out_of_patience(rows, patience, "top1") is expected


def scripted(config: Config, values: list[float], resume: bool = False) -> Trainer:
    """A trainer whose validation finds these."""
    trainer = Trainer(config, resume)
    found: Iterator[float] = iter(values)
    nothing = Detail(torch.zeros(1), torch.zeros(1))
    trainer._validate = lambda: Evaluation({"top1": next(found)}, nothing, None)
    return trainer


def test_a_run_stops_keeps_its_best_and_may_go_on(tiny: Make, capsys: pytest.CaptureFixture[str]) -> None:
    change = ["train.epochs=8", "train.steps_per_epoch=1"]
    config = tiny(*change, "train.patience=2")
    assert scripted(config, [10.0, 30.0, 20.0, 30.0]).fit() == {"val/top1": 30.0}
    assert f"for train.patience=2 epochs. {config.run_dir} holds the model of the best one." in capsys.readouterr().out
    best = (config.run_dir / "best/model.safetensors").read_bytes()
    assert (config.run_dir / "model.safetensors").read_bytes() == best
    assert "30.00 %" in (config.run_dir / "README.md").read_text()

    again = scripted(config, [], resume=True)
    assert again.fit() == {"val/top1": 30.0}
    assert again.progress.epoch == 4
    assert "is finished: it stopped after 4. To train longer, give a larger or no train.patience" in (
        capsys.readouterr().out
    )

    # from the last state, not from the best model
    scripted(tiny(*change, "train.patience=3"), [25.0], resume=True).fit()
    assert len(again.metrics.rows()) == 5
    assert (config.run_dir / "best/model.safetensors").read_bytes() == best
    scripted(tiny(*change), [25.0, 40.0, 10.0], resume=True).fit()
    assert again.metrics.rows()[-1]["epoch"] == 8
    assert (config.run_dir / "best/model.safetensors").read_bytes() != best


def test_what_a_pruned_run_starts_from_is_the_best_dense_model(pictures: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_vit", img_size=32).state_dict(), weights)
    change = {"train.patience": 1, "train.epochs": 6, "optimizer.lr": 1e-9, "data.workers": 0, "data.batch_size": 4}
    change |= {"model.checkpoint": str(weights), "model.architecture": "test_vit", "model.kwargs": {"img_size": 32}}
    change |= {"model.stages": [1], "output_dir": str(tmp_path / "run")}  # nothing learns: every epoch is as good
    dynavit.train(None, change, images=pictures)
    dense = tmp_path / "run-dense"
    assert len(MetricsFile(dense / "metrics.jsonl").rows()) == 2
    assert (dense / "model.safetensors").read_bytes() == (dense / "best/model.safetensors").read_bytes()
    # one that stopped so is taken as finished by the next run
    before = (dense / "model.safetensors").stat().st_mtime_ns
    dynavit.train(None, change | {"output_dir": str(tmp_path / "other")}, images=pictures)
    assert not (tmp_path / "other-dense").exists()
    assert (dense / "model.safetensors").stat().st_mtime_ns == before
