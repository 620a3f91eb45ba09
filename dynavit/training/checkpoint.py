"""The state of a run, written aside and renamed, so that a kill at any moment loses nothing.

``state/`` is the latest, ``state.previous/`` the one before it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import load
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from dynavit.errors import InputError
from dynavit.files import refuse_special
from dynavit.text import first_line

_MOST = 1 << 62  # steps, and whatever else is counted

STATE, PREVIOUS, PARTIAL, BEST = "state", "state.previous", "state.partial", "best"
_MARKER, _ABOUT, _PARTS, _EMA = ".dynavit", "about.json", "training.json", "ema.safetensors"
_IMAGES = "images"  # their number may change, as when one that could not be read is removed


class Stateful(Protocol):
    """What moves while training; its state is plain data: numbers by name."""

    def state_dict(self) -> dict[str, Any]:
        """Return it."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restore it."""


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
        """Restore the fields.

        Raises:
            ValueError: they count something that cannot be.
        """
        counts = [state[name] for name in ("epoch", "batch", "step", "count")]
        if min(counts) < 0 or max(counts) > _MOST or not all(math.isfinite(total) for total in state["sums"].values()):
            raise ValueError(f"its progress is impossible: {dict(state)}")
        for name, value in state.items():
            setattr(self, name, value)


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


def begin_state(run_dir: Path) -> None:
    """Make the folder that the next state is written to; what an interrupted save left there is removed.

    Raises:
        InputError: it holds what this module did not write.
    """
    partial = run_dir / PARTIAL
    if partial.exists():
        if not is_state(partial):
            raise InputError(f"{partial} was not written by dynavit: move it away.")
        _empty(partial)
    partial.mkdir(exist_ok=True)
    (partial / _MARKER).touch()


def save_state(
    accelerator: Accelerator, run_dir: Path, about: Mapping[str, Any], parts: Mapping[str, Stateful], ema: Any = None
) -> None:
    """Save a run's state beside the previous one: what accelerate prepared, and what else belongs to it.

    Nothing of it is a pickle that would be trusted when it is read again.

    Args:
        accelerator: which prepared model, optimiser and loaders.
        run_dir: the run's folder.
        about: what a state's meaning depends on, checked on resume.
        parts: what moves while training, by name; their states are plain data.
        ema: module of averaged weights, or None.
    """
    partial = run_dir / PARTIAL
    if accelerator.is_main_process:
        begin_state(run_dir)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if ema is not None:
            save_model(ema, str(partial / _EMA))
        (partial / _PARTS).write_text(json.dumps({name: part.state_dict() for name, part in parts.items()}))
        (partial / _ABOUT).write_text(json.dumps(about))
        state, previous = run_dir / STATE, run_dir / PREVIOUS
        if state.exists():
            if previous.exists():
                _empty(previous)
                shutil.rmtree(previous)
            state.replace(previous)
        partial.replace(state)
    accelerator.wait_for_everyone()


def _empty(folder: Path) -> None:
    """Remove all that is in a state but the marker: killed in between, it is still known to be ours."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _MARKER:
            path.unlink()


def is_state(folder: Path) -> bool:
    """Whether this module wrote a folder, or began to."""
    return folder.is_dir() and ((folder / _MARKER).exists() or (folder / _ABOUT).exists() or not any(folder.iterdir()))


def find_state(run_dir: Path) -> Path | None:
    """Return the newest complete state of a run, or None."""
    # between the two renames of save_state only the previous one exists
    return next((path for name in (STATE, PREVIOUS) if (path := run_dir / name).is_dir()), None)


def load_state(
    accelerator: Accelerator, state: Path, about: Mapping[str, Any], parts: Mapping[str, Stateful], ema: Any = None
) -> dict[str, Any]:
    """Restore what :func:`save_state` saved; returns what it was told about it.

    Raises:
        InputError: the state was written under other circumstances, or is damaged; the previous one is
            offered.
    """
    previous = state.with_name(PREVIOUS)
    offer = (
        f" Remove {state} to resume from {previous.name}."
        if previous.is_dir() and state != previous
        else " Start again in another output_dir."
    )
    if (state / "custom_checkpoint_0.pkl").exists() and not (state / _PARTS).exists():
        raise InputError(
            f"{state} was written by an earlier version of dynavit, in a form that could run code when it is read. "
            f"Start from the run's weights with model.checkpoint={state.parent}, in another output_dir."
        )
    try:
        for path in state.rglob("*"):
            refuse_special(path)
        found = json.loads((state / _ABOUT).read_text())
        if not isinstance(found, dict):
            raise ValueError(f"{_ABOUT} holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{state} is damaged ({error}).{offer}") from None
    for key in about.keys() - {_IMAGES}:
        if found.get(key) != about[key]:
            raise InputError(
                f"{state} was written with other {key}: {found.get(key)!r}, now {about[key]!r}. Resume as the run was "
                f"started, or choose another output_dir."
            )
    try:
        states = json.loads((state / _PARTS).read_text())
        if not _alike(states, {name: part.state_dict() for name, part in parts.items()}):
            raise ValueError(f"{_PARTS} holds something else")
        accelerator.load_state(str(state), load_kwargs={"weights_only": True})
        # accelerate passes over random states that it cannot read, without a word
        load(state / f"random_states_{accelerator.process_index}.pkl", weights_only=True)
        if ema is not None:
            load_model(ema, str(state / _EMA), device="cpu")
        for name, part in parts.items():
            part.load_state_dict(states[name])
    except Exception as error:  # whatever safetensors, pickle or torch say of a damaged file
        raise InputError(f"{state} is damaged ({_reason(error)}).{offer}") from error
    return found


def _reason(error: Exception) -> str:
    """Return the first line of an error, without torch's advice to trust the file."""
    if isinstance(error, UnpicklingError):
        return "one of its files is cut, or holds more than numbers and could run code"
    return first_line(error)


def _alike(found: Any, pattern: Any) -> bool:
    """Whether plain data have the names and types of the pattern; an empty one takes any floats by name."""
    if not isinstance(pattern, dict):
        return type(found) is type(pattern)
    if not isinstance(found, dict):
        return False
    if not pattern:
        return all(isinstance(value, float) for value in found.values())
    return found.keys() == pattern.keys() and all(_alike(found[name], part) for name, part in pattern.items())
