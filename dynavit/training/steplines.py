"""Signs of life in logs: a line now and then where there is no terminal for a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

_SECONDS = 30.0


class StepLines:
    """Says how far a training is: after its first step, then every so many steps, and at least every half minute.

    Args:
        log: receives the lines.
        total_steps: optimiser steps of the whole run.
        every: steps between two lines.
        images_per_step: of all processes together.
        clock: seconds that grow.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        total_steps: int,
        every: int,
        images_per_step: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.log, self.total_steps, self.every, self.images_per_step = log, total_steps, every, images_per_step
        self.clock = clock
        self._start: tuple[float, int] | None = None  # when the first step began, and how many were done before
        self._last: tuple[float, int] = 0.0, 0

    def begin(self, step: int) -> None:
        """Start the clock of the remaining time where ``step`` steps are done; later calls change nothing."""
        if self._start is None:
            self._start = self._last = self.clock(), step

    def due(self, step: int) -> bool:
        """Whether a line is to be said after this many steps."""
        assert self._start is not None
        first = self._last == self._start
        return step > self._last[1] and (first or step % self.every == 0 or self.clock() - self._last[0] >= _SECONDS)

    def step(self, step: int, epoch: str, loss: float, lr: float) -> None:
        """Say a line.

        Args:
            step: optimiser steps done.
            epoch: which one of how many, such as ``"2/30"``.
            loss: of the last step.
            lr: its learning rate.
        """
        assert self._start is not None
        now = self.clock()
        (began, done), (before, last) = self._start, self._last
        speed = (step - last) * self.images_per_step / max(now - before, 1e-9)
        # over everything since the start, validations included
        left = timedelta(seconds=round((now - began) / (step - done) * (self.total_steps - step)))
        self.log(
            f"{datetime.now():%H:%M:%S}  epoch {epoch}  step {step:,}/{self.total_steps:,}  loss {loss:.3f}  "
            f"lr {lr:.2g}  {speed:,.1f} images/s  {left} left"
        )
        self._last = now, step
