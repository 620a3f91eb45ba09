"""Training stops when validation does not get better, and goes on when it is given more patience."""

from collections.abc import Callable, Iterator

import pytest
import torch

from dynavit.config import Config
from dynavit.tasks import Evaluation
from dynavit.tasks.base import Detail
from dynavit.training.folder import is_out_of_patience
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
    assert f"no better top1 for 2 epochs. The best model is in {config.run_dir / 'best'}" in capsys.readouterr().out
    best = (config.run_dir / "best/model.safetensors").read_bytes()

    again = scripted(config, [], resume=True)
    assert again.fit() == {"val/top1": 30.0}
    assert again.progress.epoch == 4
    assert "is finished: it stopped after 4. To train longer, give a larger or no train.patience" in (
        capsys.readouterr().out
    )

    scripted(tiny(*change, "train.patience=3"), [25.0], resume=True).fit()
    assert len(again.metrics.rows()) == 5
    assert (config.run_dir / "best/model.safetensors").read_bytes() == best
    scripted(tiny(*change), [25.0, 40.0, 10.0], resume=True).fit()
    assert again.metrics.rows()[-1]["epoch"] == 8
    assert (config.run_dir / "best/model.safetensors").read_bytes() != best
