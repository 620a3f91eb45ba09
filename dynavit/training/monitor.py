"""Watching a run: metrics on file, and a guard that stops it when it diverges."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynavit.errors import InputError
from dynavit.files import append_text, refuse_special, write_text


class MetricsFile:
    """``metrics.jsonl``: one JSON object a line, in the order of training steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row.

        Raises:
            InputError: the file cannot be written, or is a link.
        """
        append_text(self.path, json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Return all complete rows; a line that a kill cut short does not count.

        Raises:
            InputError: the file cannot be read.
        """
        rows = []
        refuse_special(self.path)
        try:
            text = self.path.read_text(errors="replace") if self.path.exists() else ""
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}.") from None
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                break
            rows.append(row)
        return rows

    def cut_back(self, step: int) -> None:
        """Forget everything after an optimiser step, when a run resumes from there."""
        kept = [row for row in self.rows() if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))


class Diverged(InputError):
    """Training no longer learns; the message says what was seen and what usually causes it."""


class DivergenceGuard:
    """Stops a run whose loss or gradients explode.

    It stops when the loss is not finite, when its running mean exceeds twice both its beginning and
    the loss of guessing, when gradients stay non-finite, or when the gradient norm passes a million:
    no healthy loss does that, but a mask multiplied by a huge constant does.

    Args:
        chance_loss: the loss of guessing, ``log(number of classes)`` for cross-entropy.
        half_precision: fp16 gradients overflow now and then by design; wait longer.
    """

    gradient_limit = 1e6
    warmup = 20

    def __init__(self, chance_loss: float, half_precision: bool = False) -> None:
        self.chance_loss = chance_loss
        self.patience = 50 if half_precision else 3
        self.steps = 0
        self.mean = 0.0
        self.first = math.inf
        self.bad_gradients = 0
        self.healthy = 0
        self.start = "the weights it starts from (model.checkpoint)"

    def check(self, loss: float, gradients: Mapping[str, float], lr: float) -> None:
        """Look at one optimiser step.

        Raises:
            Diverged: the run is beyond repair.
        """
        self.steps += 1
        weight = max(1 / self.steps, 1 / self.warmup)
        self.mean += weight * (loss - self.mean)
        if self.steps == self.warmup:
            self.first = self.mean
        finite = all(math.isfinite(norm) for norm in gradients.values())
        self.bad_gradients = 0 if finite else self.bad_gradients + 1
        self.healthy += finite and math.isfinite(loss)

        norms = ", ".join(f"{part} {norm:.2g}" for part, norm in gradients.items())
        if finite and any(norm > self.gradient_limit for norm in gradients.values()):
            raise Diverged(
                f"gradient norms exploded ({norms}) at a loss of {loss:.3g}. A mask that carries a "
                f"gradient is being multiplied by a huge constant, as in weight - (1 - mask) * 1e10; use "
                f"log(mask), as dynavit does, and look at custom selectors and losses first."
            )
        if not math.isfinite(loss):
            raise Diverged(self._advice(f"the loss is {loss}", norms, lr))
        if self.bad_gradients >= self.patience:
            raise Diverged(self._advice(f"gradients were not finite {self.bad_gradients} times in a row", norms, lr))
        if self.steps > self.warmup and self.mean > 2 * max(self.first, self.chance_loss):
            raise Diverged(
                self._advice(f"the loss rose from {self.first:.3g} to {self.mean:.3g}, above guessing", norms, lr)
            )

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs to judge alike."""
        return {
            "steps": self.steps,
            "mean": self.mean,
            "first": self.first,
            "bad": self.bad_gradients,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore :meth:`state_dict`; whether steps are sound has to be seen anew."""
        self.steps, self.bad_gradients = int(state["steps"]), int(state["bad"])
        self.mean, self.first = state["mean"], state["first"]

    def _advice(self, seen: str, norms: str, lr: float) -> str:
        precision = " fp16 overflows easily: try train.mixed_precision=bf16." if self.patience > 3 else ""
        if self.healthy:
            cause = (
                "The likely cause is a learning rate that is too high: lower optimizer.lr or raise "
                "optimizer.warmup_epochs."
            )
        else:
            cause = (
                f"No step was sound, from the first on, so the learning rate is not the cause: look at {self.start}, "
                f"the preprocessing (data.mean, data.std), the images, and the weights of losses."
            )
        return f"{seen} (gradient norms: {norms}; learning rate {lr:.2g}). {cause}{precision}"
