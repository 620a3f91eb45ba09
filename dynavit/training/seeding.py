"""Randomness as a function of what is being done, not of what was done before.

Neither the number of workers nor the moment of a kill then matters.
"""

from __future__ import annotations

import random

import numpy as np
import torch


def mix(*parts: int) -> int:
    """Return a seed that depends on every part."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


def seed_all(*parts: int) -> None:
    """Seed Python, NumPy and torch (every device) from the parts."""
    seed = mix(*parts)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  timm's Mixup draws from the global generator
    torch.manual_seed(seed)
