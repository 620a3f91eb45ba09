"""Losses, metrics and pictures reach every tracker that is asked for."""

from collections.abc import Callable
from typing import Any, ClassVar

import accelerate.tracking
import pytest
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

import dynavit
from dynavit.config import Config
from dynavit.training.trainer import Trainer

Make = Callable[..., Config]


class Recorder(GeneralTracker):
    """In place of Weights & Biases, which wants an account."""

    name = "wandb"
    requires_logging_directory = False
    made: ClassVar[list["Recorder"]] = []

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        self.project, self.options = project, options
        self.settings: dict[str, Any] = {}
        self.values: list[tuple[int, dict[str, float]]] = []
        self.pictures: list[tuple[int, tuple[int, ...]]] = []
        self.made.append(self)

    @property
    def tracker(self) -> "Recorder":
        return self

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        assert step is not None
        self.values.append((step, values))

    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        assert step is not None
        self.pictures.append((step, values["kept_tokens"].shape))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)

    def available() -> list[LoggerType]:
        return [LoggerType.TENSORBOARD, LoggerType.WANDB]

    monkeypatch.setattr("accelerate.tracking.get_available_trackers", available)
    monkeypatch.setattr("dynavit.training.logbook.get_available_trackers", available)
    monkeypatch.setattr(Recorder, "made", [])
    return Recorder.made


def test_all_that_are_asked_for_get_everything(tiny: Make, recorder: list[Recorder]) -> None:
    config = tiny("train.trackers=[tensorboard, wandb]", "train.epochs=2", "train.log_steps=1", "name=mine")
    Trainer(config).fit()
    (tracker,) = recorder
    assert (tracker.project, tracker.options) == ("dynavit", {"name": "mine"})
    assert tracker.settings["train.epochs"] == 2
    assert tracker.settings["model.stages"] == str(config.model.stages)
    names = {name for _, values in tracker.values for name in values}
    assert {"train/loss", "schedule/lr", "val/top1", "speed/images_per_second"} <= names
    steps = [step for step, values in tracker.values if "val/top1" in values]
    assert steps == [step for step, _ in tracker.pictures] == [steps[0], 2 * steps[0]]
    assert {len(shape) for _, shape in tracker.pictures} == {4}
    events = [path.name for path in config.run_dir.iterdir() if path.name.startswith("events.")]
    assert len(events) == 1
    folders = {path.name for path in config.run_dir.iterdir() if path.is_dir()}
    assert folders <= {"best", "state", "state.previous"}


def test_none_is_possible(tiny: Make) -> None:
    config = tiny("train.trackers=[]", "train.epochs=1", "train.log_steps=1")
    Trainer(config).fit()
    assert not [path for path in config.run_dir.iterdir() if path.name.startswith("events.")]
    assert (config.run_dir / "metrics.jsonl").exists()


def test_unknown_and_missing_ones_are_refused(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(dynavit.InputError, match=r"train\.trackers: there is no tracker 'wanb'.*Did you mean 'wandb'"):
        Trainer(tiny("train.trackers=[wanb]"))
    monkeypatch.setattr("dynavit.training.logbook.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(dynavit.InputError, match=r"train\.trackers: mlflow is not installed"):
        Trainer(tiny("train.trackers=[tensorboard, mlflow]"))
