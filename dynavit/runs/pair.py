"""A pruned run and the dense one that it starts from: two folders side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dynavit.config import Config


def dense_folder(run_dir: Path) -> Path:
    """Return where the dense model of a run goes that is trained before it."""
    named = run_dir if run_dir.name not in ("", "..") else run_dir.resolve()  # . and .. have no name
    return named.with_name(f"{named.name}-dense")


def after_move(config: Config, run_dir: Path) -> Config:
    """Return a run's configuration with the place where its dense model is now, if both folders were moved."""
    start, dense = Path(config.model.checkpoint or ""), dense_folder(run_dir)
    if start.exists() or not start.name.endswith("-dense"):
        return config
    places = (dense.with_name(start.name), dense)  # it may be shared with another run, or renamed
    moved = next((place for place in places if place.is_dir()), start)
    return replace(config, model=replace(config.model, checkpoint=str(moved)))
