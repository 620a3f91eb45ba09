"""Running a configuration in this process, as often as one likes."""

from __future__ import annotations

from dynavit.config import Config
from dynavit.training.trainer import Trainer
from tests.small_runs import forget_accelerate


def train(config: Config, resume: bool = False) -> Trainer:
    """Train, and leave nothing behind that the next run would find in the process."""
    trainer = None
    try:
        trainer = Trainer(config, resume)
        trainer.fit()
        return trainer
    finally:
        for tracker in trainer.accelerator.trackers if trainer is not None else []:
            tracker.finish()
        forget_accelerate()


def fill(text: str, paths: dict[str, str]) -> str:
    """Put paths in the place of their ``<name>``."""
    for name, path in paths.items():
        text = text.replace(f"<{name}>", path)
    return text
