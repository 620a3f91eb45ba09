"""What passes between the model and a selector: a request, beside the logits, and a selection.

Shapes: B batch, N patch tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class SelectionRequest:
    """What is asked of a selector in training, beside the logits.

    Attributes:
        alive: ``(B, N)`` bool, the tokens that earlier stages left.
        k: tokens to keep per image: an int, or an int64 tensor of shape ``()`` or ``(B,)``; None if a budget
            loss sets their number.
        temperature: smoothness of the gradient (and of a soft forward), above 0.
        generator: source of the noise; the global one if None.
    """

    alive: Tensor
    k: int | Tensor | None = None
    temperature: float | Tensor = 1.0
    generator: torch.Generator | None = None

    @property
    def count(self) -> int | Tensor:
        """``k``, for a selector whose budget is ``"k"``: such a one always gets it."""
        assert self.k is not None
        return self.k


@dataclass(frozen=True)
class Selection:
    """The outcome of one stage.

    Attributes:
        keep: ``(B, N)`` bool, the hard decision, a subset of the alive tokens. Inference reads nothing else.
        mask: ``(B, N)`` fp32, what training multiplies by, hard or soft. It carries the gradient
            and is zero on tokens that are not alive.
        probs: ``(B, N)`` fp32, marginal probability of being kept; budget losses read this.
        log_prob: ``(B,)`` fp32, log-probability of ``keep``, where a selector knows it.
        aux: named auxiliary losses.
    """

    keep: Tensor
    mask: Tensor
    probs: Tensor
    log_prob: Tensor | None = None
    aux: Mapping[str, Tensor] = field(default_factory=dict)
