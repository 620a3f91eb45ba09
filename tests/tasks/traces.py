"""Traces of a single stage, made without a model."""

from __future__ import annotations

import torch
from torch import Tensor

from dynavit import Trace
from dynavit.models.trace import StageChoice, StageTrace


def trace_of(probs: Tensor, log_prob: Tensor | None = None) -> Trace:
    """Return the trace of a stage that keeps each token with a probability ``(B, n)``."""
    kept = probs > 0.5
    places = torch.arange(probs.shape[1]).expand(probs.shape)
    fraction, count = probs.mean(dim=1), kept.sum(dim=1)
    choice = StageChoice(torch.ones_like(kept), places, probs.logit(), probs, fraction, fraction, count, log_prob, {})
    return Trace("mask", probs.unsqueeze(-1), places, places, None, [StageTrace(kept, count, choice)])
