"""What may be trained where: a folder that holds something else, or another run, is left as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynavit.config import Config, changed_keys, is_saved_config, load_config
from dynavit.errors import InputError
from dynavit.runs.pair import after_move
from dynavit.training.checkpoint import BEST, PARTIAL, PREVIOUS, STATE, Progress, find_state, is_state
from dynavit.training.lock import LOCK
from dynavit.training.monitor import MetricsFile
from dynavit.training.setup import Schedules

_ELSEWHERE = "choose another place with output_dir=FOLDER or name=NAME."
_BEFORE_A_RUN = {LOCK, "latency.json"}  # what a start leaves that fails before it trains

_MAY_CHANGE = {
    *("name", "output_dir", "data.root", "data.corrupt", "data.workers", "data.download"),
    *("train.epochs", "train.log_steps", "train.checkpoint_steps", "train.trackers", "train.patience"),
}
"""And all of evaluation: settings that may differ when a run is resumed."""


def check_folder(config: Config, resume: bool) -> Path | None:
    """Return the state from which a run is to be resumed, or None to start it.

    Raises:
        InputError: the folder holds a run and ``resume`` is False, a run of another configuration, a model that
            nothing says how to continue, or files that no run of dynavit wrote.
    """
    run_dir = config.run_dir
    try:
        if not run_dir.exists():
            return None
        if not run_dir.is_dir():
            raise InputError(f"{run_dir} is a file: {_ELSEWHERE}")
        names = {path.name for path in run_dir.iterdir()}
        _refuse_foreign(run_dir, names)
    except OSError as error:
        raise InputError(f"{run_dir} cannot be read ({error.strerror}): {_ELSEWHERE}") from None
    has_model, state = "model.safetensors" in names, find_state(run_dir)
    if not resume and (has_model or state is not None or "config.yaml" in names):
        raise InputError(f"{run_dir} already holds a run or a model: continue it with --resume, or {_ELSEWHERE}")
    if state is not None:
        _refuse_another_configuration(run_dir, config)
        return state
    epochs = len(MetricsFile(run_dir / "metrics.jsonl").rows())
    # a run killed at the end of its first epoch has begun a state; anything more is somebody's model
    if (has_model or epochs) and not (epochs <= 1 and PARTIAL in names):
        raise InputError(
            f"{run_dir} holds a model but no state to resume from: {STATE}/ was removed. Start from its weights with "
            f"model.checkpoint={run_dir}, and {_ELSEWHERE}"
        )
    return None


def _refuse_foreign(run_dir: Path, names: set[str]) -> None:
    for name in (STATE, PREVIOUS, PARTIAL, BEST):
        if (run_dir / name).is_symlink():  # saving would write, or remove, what is there
            raise InputError(f"{run_dir / name} is a link to somewhere else: move its folder here, or {_ELSEWHERE}")
    for name in (STATE, PREVIOUS, PARTIAL):
        if (run_dir / name).exists() and not is_state(run_dir / name):
            raise InputError(f"{run_dir / name} was not written by dynavit: move it away, or {_ELSEWHERE}")
    is_run = find_state(run_dir) is not None or is_saved_config(run_dir / "config.yaml")
    if not is_run and "model.safetensors" not in names and not names <= _BEFORE_A_RUN:
        foreign = ", ".join(sorted(names - _BEFORE_A_RUN))
        shown = foreign if len(foreign) < 100 else f"{foreign[:100]}..."
        raise InputError(f"{run_dir} holds files that are of no dynavit run ({shown}): {_ELSEWHERE}")


def _refuse_another_configuration(run_dir: Path, config: Config) -> None:
    changes = [
        (key, before, now)
        for key, before, now in changed_keys(saved_config(run_dir), config)
        if key not in _MAY_CHANGE and not key.startswith("evaluate.")
    ]
    if changes:
        listed = ", ".join(f"{key}={now!r} (was {before!r})" for key, before, now in changes)
        raise InputError(
            f"{run_dir} was started with another configuration: {listed}. Resume with that of the run, or {_ELSEWHERE}"
        )


def describe_changes(config: Config, schedules: Schedules, step: int) -> list[str]:
    """Say what differs from how a run was trained before, and what that does to its schedules.

    Args:
        config: what it is resumed with; the folder still holds the one before.
        schedules: those of ``config``.
        step: optimiser steps done.
    """
    before = saved_config(config.run_dir)
    changes = [(key, old, new) for key, old, new in changed_keys(before, config) if not key.startswith("evaluate.")]
    lines = [f"Changed since: {', '.join(f'{key} {old!r} -> {new!r}' for key, old, new in changes)}."] * bool(changes)
    if before.train.epochs != config.train.epochs:
        steps = schedules.total_steps // config.train.epochs * before.train.epochs
        planned = replace(schedules.learning_rate, total_steps=steps)
        was = replace(schedules, config=before, total_steps=steps, learning_rate=planned)
        lines.append(
            f"The schedules now end after {config.train.epochs} epochs in place of {before.train.epochs}, as if it had "
            f"been so from the start: at step {step} the learning rate is {schedules.lr(step):.2g} (it was "
            f"{was.lr(step):.2g}), the temperature {schedules.temperature(step):.3g} (it was "
            f"{was.temperature(step):.3g})."
        )
    return lines


def is_out_of_patience(rows: Sequence[Mapping[str, Any]], patience: int | None, metric: str) -> bool:
    """Whether a run has gone on for ``train.patience`` epochs without a better metric.

    Args:
        rows: of its metrics, one an epoch.
        patience: None if it has no end.
        metric: of validation, the more the better.
    """
    values = [row.get(f"val/{metric}", -math.inf) for row in rows]
    return patience is not None and bool(values) and len(values) - 1 - values.index(max(values)) >= patience


def refuse_fewer_epochs(config: Config, progress: Progress) -> None:
    """Refuse a resumed run that has gone further than it is to go.

    Raises:
        InputError: naming how far.
    """
    begun = progress.epoch + (progress.batch > 0)
    if config.train.epochs < begun:
        raise InputError(
            f"train.epochs={config.train.epochs}: {config.run_dir} has trained for {progress.epoch} epochs"
            f"{' and part of another' * (progress.batch > 0)}; give {begun} or more."
        )


def saved_config(run_dir: Path) -> Config:
    """Return the configuration that a run was started with; a dense model that was moved with it, where it is now.

    Raises:
        InputError: the folder lacks it, or it is damaged.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise InputError(f"{run_dir} lacks its config.yaml, without which it cannot be resumed: {_ELSEWHERE}")
    return after_move(load_config(path), run_dir)
