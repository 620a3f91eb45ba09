"""Which of several processes this is, as torchrun and ``accelerate launch`` tell it."""

from __future__ import annotations

import os


def num_processes() -> int:
    """Return how many processes work together."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def is_main_process() -> bool:
    """Tell whether this is the process that prints and writes."""
    return num_processes() == 1 or os.environ.get("RANK") == "0"
