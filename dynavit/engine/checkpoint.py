"""The state of a run, written aside and renamed, so that a kill at any moment loses nothing.

``state/`` is the latest, ``state.previous/`` the one before it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from dynavit.config import Config, changed_keys, load_config
from dynavit.errors import InputError

_ABOUT = "about.json"


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: epochs completed.
        batch: batches done of the epoch under way.
        step: optimiser steps done.
        best: best validation metric so far.
        sums, count: sums of the losses over ``count`` batches of the epoch under way.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = float("-inf")
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the fields."""
        for name, value in state.items():
            setattr(self, name, value)


def refuse_to_overwrite(run_dir: Path, resume: bool, epochs: int) -> None:
    """Refuse to start a run where there is something to lose.

    Args:
        run_dir: its folder, which holds no state to resume from.
        resume: whether an interrupted start may be begun again.
        epochs: how many its metrics tell of.

    Raises:
        InputError: the folder holds a run or a model.
    """
    elsewhere = "choose another place with output_dir=FOLDER or name=NAME."
    has_model = (run_dir / "model.safetensors").exists()
    if not resume and (has_model or (run_dir / "config.yaml").exists()):
        raise InputError(f"{run_dir} already holds a run: continue it with --resume, or {elsewhere}")
    # a run killed at the end of its first epoch has no state yet; anything more is somebody's model
    if has_model and epochs != 1:
        raise InputError(f"{run_dir} holds a model but no state to resume from: {elsewhere}")


def refuse_another_configuration(run_dir: Path, config: Config) -> None:
    """Refuse to resume a run with settings that would change what it computes.

    Raises:
        InputError: naming them, with their old and new values.
    """
    changes = changed_keys(load_config(run_dir / "config.yaml"), config)
    if changes:
        listed = ", ".join(f"{key}={now!r} (was {old!r})" for key, old, now in changes)
        raise InputError(
            f"{run_dir} was started with another configuration: {listed}. Resume with that of the run, or choose "
            f"another place with output_dir=FOLDER or name=NAME."
        )


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while writing into one clear message.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise  # not about writing: torch.save hides the OSError in such a RuntimeError
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{folder} could not be written ({reason}). What was saved there before is whole: make room, or make it "
            f"writable, and continue with --resume."
        ) from error


def save_state(accelerator: Accelerator, run_dir: Path, about: Mapping[str, Any]) -> None:
    """Save everything registered with the accelerator; the previous state stays beside it.

    Args:
        about: what a state's meaning depends on, checked on resume.
    """
    partial = run_dir / "state.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / _ABOUT).write_text(json.dumps(about))
        state, previous = run_dir / "state", run_dir / "state.previous"
        if state.exists():
            shutil.rmtree(previous, ignore_errors=True)
            state.replace(previous)
        partial.replace(state)
    accelerator.wait_for_everyone()


def find_state(run_dir: Path) -> Path | None:
    """Return the newest complete state of a run, or None."""
    # between the two renames of save_state only the previous one exists
    return next((path for name in ("state", "state.previous") if (path := run_dir / name).is_dir()), None)


def load_state(accelerator: Accelerator, state: Path, about: Mapping[str, Any]) -> None:
    """Restore what :func:`save_state` saved.

    Raises:
        InputError: the state was written under other circumstances, or is damaged; the previous one is
            offered.
    """
    previous = state.with_name("state.previous")
    offer = (
        f" Remove {state} to resume from {previous.name}."
        if previous.is_dir() and state != previous
        else f" Remove {state} to start again."
    )
    try:
        found = json.loads((state / _ABOUT).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{state} cannot be read ({error}).{offer}") from None
    for key, value in about.items():
        if found.get(key) != value:
            raise InputError(
                f"{state} was written with other {key}: {found.get(key)!r}, now {value!r}. Resume as the run was "
                f"started, or choose another output_dir."
            )
    try:
        accelerator.load_state(str(state))
    except Exception as error:  # whatever safetensors, pickle or torch say of a damaged file
        reason = str(error).partition("\n")[0]
        raise InputError(f"{state} is damaged ({reason}).{offer}") from error
